"""Train an autoencoder on a folder of faces (`2-autoencoder`)."""

from __future__ import annotations

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.training.tasks.autoencoder import AutoencoderTask
from facesyn_cli.training.tasks.autoencoder_settings import AutoencoderTrainingConfig
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainAutoencoderConfig(AutoencoderTrainingConfig):
    """Settings of `facesyn train-autoencoder`."""


def plan(cfg: TrainAutoencoderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    return AutoencoderTask("train-autoencoder", cfg, work).full_plan()


def run(cfg: TrainAutoencoderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the averaged weights."""
    check_environment(cfg)
    return run_training(AutoencoderTask("train-autoencoder", cfg, work), join_processes(cfg))
