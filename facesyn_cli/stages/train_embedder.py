"""Train a small recognizer towards the embeddings that a larger one wrote (`1-embedder`).

With an autoencoder the student reads latents instead of photos, as the identity loss of `train-ldm` needs it.

The teacher itself is not needed: its embeddings come from `facesyn embed`, joined with the photos by key. Transformed
views of a photo keep the target of the photo itself. The student therefore shares the teacher's embedding space, so
that embeddings and contexts of both can be compared; config and header name the teacher (`distilled_from`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.weights import WeightsPrecision
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    affects_result,
    batch_setting,
    input_path,
    runtime_only,
)
from facesyn_cli.distributed import launched_processes
from facesyn_cli.training.bn_groups import num_groups
from facesyn_cli.training.optimization import LrSchedule, OptimizerSettings
from facesyn_cli.training.shared_settings import GroupsConfig, StepsConfig, TrainingConfig
from facesyn_cli.training.tasks.embedder import EmbedderTask
from facesyn_cli.training.trainer import check_environment, join_processes, run_training

_OF_PHOTOS, _OF_LATENTS = ("transforms", "decoded", "decoded_cache"), (
    "image_size", "latent_precision", "latent_noise", "latent_cache",
)


class TrainEmbedderConfig(StepsConfig, GroupsConfig):
    """Settings of `facesyn train-embedder`."""

    renamed = {
        **TrainingConfig.renamed, "validation.fraction": "validation_fraction",
        "validation.images": "validation_images", "validation.every": "validate_every",
    }

    images: Path | None = input_path(None, "folder or zip of faces, or a packed set; None: 0-images of the run")
    embeddings: Path | None = input_path(
        None, "EmbeddingSet of the teacher, or published embeddings; None: 1-embeddings"
    )
    embedding_names: Path | None = input_path(
        None, "row-order list of a published array; None: image_names.* beside it"
    )
    autoencoder: str | None = input_path(
        None, "weights of an autoencoder, or taesd3: the student reads its latents of the photos (backbone latent-ir), "
        "for the identity loss of train-ldm; None: it reads photos"
    )
    backbone: PluginConfig = PluginSection("backbone", default="ir-lite")
    initial_backbone: Path | None = input_path(None, "weights of a recognizer to start from; None: random weights")
    transforms: list[PluginConfig] = PluginList(
        "transform",
        default=[
            "flip",
            {"name": "random-resized-crop", "p": 0.5, "scale": [0.8, 1.0], "ratio": [0.95, 1.0526]},
            {"name": "photometric", "p": 0.3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        ],
    )
    image_size: int = affects_result(112, "with autoencoder: side of the images it sees, in pixels", ge=8)
    latent_precision: Literal["fp32", "bf16"] = affects_result(
        "fp32", "with autoencoder: number format of the encoder; bf16 takes half the time where the processor has it"
    )
    latent_noise: float = affects_result(
        0.5, "with autoencoder: most noise on the latents, in standard deviations of the channel; half of the latents "
        "are of mirror images", ge=0
    )
    latent_cache: Path | None = runtime_only(
        None, "with autoencoder: folder of the cache of latents, may be shared with train-ldm; None: latents/ in the "
        "output"
    )
    relational_weight: float = affects_result(
        0.0, "factor of the squared differences of the cosines between photos", ge=0
    )

    batch_size: int = affects_result(64, "images of one optimizer step, over all processes", ge=2)
    norm_batch_size: int = affects_result(
        64, "images that BatchNorm and the relational term see together; see groups_per_pass", ge=2
    )
    optimizer: OptimizerSettings = affects_result(
        OptimizerSettings(name="adamw", lr=1e-3, weight_decay=0.05),
        "the optimizer and its base learning rate; norm layers are free of weight decay",
    )
    lr_schedule: LrSchedule = affects_result(
        LrSchedule(name="cosine", warmup_steps=200), "how the learning rate changes; only `cosine` depends on `steps`"
    )
    clip: float | None = affects_result(5.0, "largest norm of the gradient; None: no clipping", gt=0)
    validation_fraction: float = affects_result(0.01, "share of the identities held out for validation", ge=0, lt=1)
    validation_images: int = runtime_only(2048, "most held-out photos to validate with", ge=1)
    weights_precision: WeightsPrecision = batch_setting("fp32", "fp32, or fp16 for files of half the size")
    checkpoint_every: int = runtime_only(500, "steps between checkpoints", ge=1)
    workers: int = runtime_only(2, "threads that read and decode, per training process", ge=0)

    @model_validator(mode="after")
    def _inputs_fit(self) -> TrainEmbedderConfig:
        # A recipe of all settings states defaults too, so these are not refused.
        if self.autoencoder:
            of_photos = type(self)()
            stated = [name for name in _OF_PHOTOS if getattr(self, name) != getattr(of_photos, name)]
            if stated:
                raise ValueError(f"{stated[0]} is for photos, and with an autoencoder latents are read; leave one out")
        else:
            stated = [name for name in _OF_LATENTS if getattr(self, name) != type(self).model_fields[name].default]
            if stated:
                raise ValueError(f"{stated[0]} is for latents: give an autoencoder too")
        return self


def plan(cfg: TrainEmbedderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    task = EmbedderTask(cfg, work)
    count = num_groups(cfg.batch_size, cfg.norm_batch_size, launched_processes())
    copies = 3 if cfg.ema is None else 4  # weights, two moments, average
    return task.plan(
        {
            "images": len(task.inputs), "images_without_embedding": task.taught.num_without,
            "validation_images": len(task.taught.held_out.entries), "steps": cfg.steps,
            "parameters": task.num_parameters, "processes": launched_processes(),
        },
        {"backbone": cfg.steps * cfg.batch_size},
        4 * task.num_parameters * (copies * (cfg.keep_checkpoints + 1) + 1) + task.inputs.cache_bytes,
        **task.inputs.chosen(), embedding_size=task.taught.train_targets.shape[1], teacher=task.teacher,
        epochs=round(cfg.steps * cfg.batch_size / len(task.inputs), 2), groups_per_step=count,
        images_per_group=cfg.batch_size // count,
    )


def run(cfg: TrainEmbedderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the weights."""
    processes = join_processes(cfg)
    num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
    return run_training(EmbedderTask(cfg, work), processes)
