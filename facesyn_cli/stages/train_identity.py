"""Train a recognizer that reads the latents of an autoencoder (`2-identity`), for the identity loss.

It learns the embeddings of the photos from their latents, as `train-embedder` does from the photos. `train-ldm` of the
same run then compares the latents that it predicts with the context, without decoding them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import PluginConfig, PluginSection, affects_result, input_path, runtime_only
from facesyn_cli.training.bn_groups import num_groups
from facesyn_cli.training.tasks.embedder import IdentityRecognizerTask
from facesyn_cli.training.tasks.embedder_settings import EmbedderTrainingConfig
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class TrainIdentityConfig(EmbedderTrainingConfig):
    """Settings of `facesyn train-identity`."""

    autoencoder: str | None = input_path(
        None, "autoencoder of the latents, that of train-ldm: file, folder or hub id; None: 2-autoencoder of the run, "
        "without one taesd3, which is packaged"
    )
    backbone: PluginConfig = PluginSection("backbone", default="latent-ir")
    image_size: int = affects_result(112, "side of the images the autoencoder sees, in pixels", ge=8)
    latent_precision: Literal["fp32", "bf16"] = affects_result(
        "fp32", "number format of the encoder; bf16 takes half the time where the processor has it"
    )
    latent_noise: float = affects_result(
        0.5, "most noise on the latents, in standard deviations of the channel; half of the latents are of mirror "
        "images", ge=0
    )
    latent_cache: Path | None = runtime_only(
        None, "folder of the cache of latents, may be shared with train-ldm; None: latents/ in the output"
    )

    @model_validator(mode="after")
    def _reads_no_photos(self) -> TrainIdentityConfig:
        # A recipe of all settings states defaults too, so these are not refused.
        for name in ("decoded", "decoded_cache"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for trainings on photos, here latents are read: leave it out")
        return self


def plan(cfg: TrainIdentityConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    return IdentityRecognizerTask(cfg, work).full_plan()


def run(cfg: TrainIdentityConfig, work: Work) -> Outcome:
    """Train, or resume, and write the weights."""
    processes = join_processes(cfg)
    num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
    return run_training(IdentityRecognizerTask(cfg, work), processes)
