"""Train an autoencoder on a folder of faces (`2-autoencoder`)."""

from __future__ import annotations

from typing import Any

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.work import Work
from facesyn_cli.training.autoencoder_training import AutoencoderTrainingConfig, plan_training, run_training


class TrainAutoencoderConfig(AutoencoderTrainingConfig):
    """Settings of `facesyn train-autoencoder`."""


def plan(cfg: TrainAutoencoderConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do, after the same checks."""
    return plan_training(cfg, work)


def run(cfg: TrainAutoencoderConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the averaged weights."""
    return run_training(cfg, work, "train-autoencoder")
