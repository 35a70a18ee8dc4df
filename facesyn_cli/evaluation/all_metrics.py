"""The metrics of all analyses: importing this module imports every analysis, and with it what that declares."""

from __future__ import annotations

from facesyn_cli.evaluation import pixel_statistics, set_report, verification
from facesyn_cli.evaluation.metrics import Metric, declared, define, headline, metric

ANALYSES = (pixel_statistics, set_report, verification)  # set_report imports those of its sections

__all__ = ["ANALYSES", "Metric", "declared", "define", "headline", "metric"]
