"""Train the decoder of an autoencoder on, with what an LDM draws (`2-decoder`).

It is `train-autoencoder` with other defaults: the encoder keeps still, so the LDM's latents keep their meaning, and
beside the photos the decoder sees latents that the LDM has drawn. `sample` and what follows take the new decoder.
"""

from __future__ import annotations

from typing import Any, Literal

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.training.autoencoder_training import AutoencoderTrainingConfig, plan_training, run_training


class TrainDecoderConfig(AutoencoderTrainingConfig):
    """Settings of `facesyn train-decoder`; None for initial, ldm: those of the run."""

    autoencoder: PluginConfig | None = PluginSection("autoencoder", default=None)  # None: that of `initial`
    freeze_encoder: Literal[True] = affects_result(True, "latents of `initial` keep their meaning")
    teacher: None = affects_result(None, "a teacher's latents are learned by train-autoencoder")


def plan(cfg: TrainDecoderConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do, after the same checks."""
    return plan_training(_completed(cfg, work), work)


def run(cfg: TrainDecoderConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the averaged weights."""
    return run_training(_completed(cfg, work), work, "train-decoder")


def _completed(cfg: TrainDecoderConfig, work: Work) -> TrainDecoderConfig:
    found: dict[str, Any] = {"out": cfg.out or work.folder("decoder")}
    for key, name in {"initial": "autoencoder", "ldm": "ldm"}.items():
        found[key] = getattr(cfg, key) or work.folder(name)
        if not found[key].exists():
            raise UserError(f"train-decoder needs --{key}: {found[key]} does not exist")
    return cfg.model_copy(update=found)
