"""Settings that `train-embedder` and `train-identity` share."""

from __future__ import annotations

from pathlib import Path

from facesyn_cli.artifacts.weights import WeightsPrecision
from facesyn_cli.config.fields import affects_result, batch_setting, input_path, runtime_only
from facesyn_cli.training.optimization import LrSchedule, OptimizerSettings
from facesyn_cli.training.shared_settings import GroupsConfig, StepsConfig


class EmbedderTrainingConfig(StepsConfig, GroupsConfig):
    """Settings of both."""

    images: Path | None = input_path(None, "folder or zip of faces, or a packed set; None: 0-images of the run")
    embeddings: Path | None = input_path(
        None, "EmbeddingSet of the teacher, or published embeddings; None: 1-embeddings"
    )
    embedding_names: Path | None = input_path(
        None, "row-order list of a published array; None: image_names.* beside it"
    )
    initial_backbone: Path | None = input_path(None, "weights of a recognizer to start from; None: random weights")
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
