"""Train a small recognizer towards the embeddings that a larger one wrote (`1-embedder`).

The teacher itself is not needed: its embeddings come from `facesyn embed`, joined with the photos by key. Transformed
views of a photo keep the target of the photo itself. The student therefore shares the teacher's embedding space, so
that embeddings and contexts of both can be compared; config and header name the teacher (`distilled_from`).
"""

from __future__ import annotations

from pathlib import Path

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


def plan(cfg: TrainEmbedderConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    task = EmbedderTask(cfg, work)
    count = num_groups(cfg.batch_size, cfg.norm_batch_size, launched_processes())
    copies = 3 if cfg.ema is None else 4  # weights, two moments, average
    return task.plan(
        {
            "images": len(task.faces), "images_without_embedding": task.taught.num_without,
            "validation_images": len(task.taught.held_out.entries), "steps": cfg.steps,
            "parameters": task.num_parameters, "processes": launched_processes(),
        },
        {"backbone": cfg.steps * cfg.batch_size},
        4 * task.num_parameters * (copies * (cfg.keep_checkpoints + 1) + 1) + task.cache_plan.num_bytes,
        **task.cache_plan.chosen(), embedding_size=task.taught.train_targets.shape[1], teacher=task.teacher,
        epochs=round(cfg.steps * cfg.batch_size / len(task.faces), 2), groups_per_step=count,
        images_per_group=cfg.batch_size // count,
    )


def run(cfg: TrainEmbedderConfig, work: Work) -> Outcome:
    """Train, or resume, and write the weights."""
    processes = join_processes(cfg)
    num_groups(cfg.batch_size, cfg.norm_batch_size, processes.world_size)
    return run_training(EmbedderTask(cfg, work), processes)
