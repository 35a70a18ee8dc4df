"""Fine-tune the decoder of an autoencoder on samples of an LDM (`2-decoder`).

It is `train-autoencoder` with other defaults: the encoder is frozen, so the LDM's latents stay valid, and the decoder
is trained on latents sampled from the LDM beside those of photos. `sample` and later stages use the new decoder.
"""

from __future__ import annotations

from typing import Any, Literal

from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, affects_result
from facesyn_cli.training.tasks.autoencoder import AutoencoderTask
from facesyn_cli.training.tasks.autoencoder_settings import AutoencoderTrainingConfig
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainDecoderConfig(AutoencoderTrainingConfig):
    """Settings of `facesyn train-decoder`; None for initial, ldm: those of the run."""

    autoencoder: PluginConfig | None = PluginSection("autoencoder", default=None)  # None: that of `initial`
    freeze_encoder: Literal[True] = affects_result(True, "the encoder is not trained: latents of `initial` stay valid")
    teacher: None = affects_result(None, "only train-autoencoder learns a teacher's latents")


def plan(cfg: TrainDecoderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    return AutoencoderTask("train-decoder", _completed(cfg, work), work).full_plan()


def run(cfg: TrainDecoderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the averaged weights."""
    check_environment(cfg)
    return run_training(AutoencoderTask("train-decoder", _completed(cfg, work), work), join_processes(cfg))


def _completed(cfg: TrainDecoderConfig, work: Work) -> TrainDecoderConfig:
    found: dict[str, Any] = {"out": cfg.out or work.folder("decoder")}
    for key, name in {"initial": "autoencoder", "ldm": "ldm"}.items():
        found[key] = getattr(cfg, key) or work.folder(name)
        if not found[key].exists():
            raise missing_input(found[key], f"the {name} to train for, --{key}", f"--{key} PATH")
    return cfg.model_copy(update=found)
