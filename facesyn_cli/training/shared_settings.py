"""Settings that all trainings share, under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator

from facesyn_cli.config.fields import StageConfig, affects_result, batch_setting, growable, runtime_only
from facesyn_cli.console import log
from facesyn_cli.data.decoded_cache import CacheChoice
from facesyn_cli.training.ema import EmaSettings
from facesyn_cli.training.metrics_log import known_trackers
from facesyn_cli.training.optimization import LrSchedule, OptimizerSettings
from facesyn_cli.training.precision import Precision


class TrainingConfig(StageConfig):
    """Settings of every training command; defaults that differ stand in the command's own class."""

    renamed: ClassVar[dict[str, str]] = {
        "optimiser": "optimizer", "optimizer.clip": "clip", "lr_schedule.drop": "lr_schedule.gamma",
    }

    changeable: ClassVar[tuple[str, ...]] = ("precision",)

    batch_size: int = affects_result(64, "images of one optimizer step, over all processes", ge=1)
    optimizer: OptimizerSettings = affects_result(OptimizerSettings(), "the optimizer and its base learning rate")
    lr_schedule: LrSchedule = affects_result(
        LrSchedule(), "how the learning rate changes; only `cosine` depends on the length of the training"
    )
    clip: float | None = affects_result(None, "largest norm of the gradient; None: no clipping", gt=0)
    ema: EmaSettings | None = affects_result(
        None, "moving average of the weights, which is validated and written; None: the last weights are"
    )
    precision: Precision = affects_result(
        "fp32", "fp32, bf16 or fp16 (CUDA only) by autocast; weights stay float32; may change on resume, with a warning"
    )
    validation_fraction: float = affects_result(0.01, "share of the data held out for validation", ge=0, lt=1)
    validate_every: int = runtime_only(1000, "steps between validations; 0: none", ge=0)
    log_every: int = runtime_only(50, "steps between lines of metrics.jsonl", ge=1)
    checkpoint_every: int = runtime_only(1000, "steps between checkpoints", ge=1)
    keep_checkpoints: int = runtime_only(2, "checkpoints that are kept; 1: none to fall back on", ge=1)
    workers: int = runtime_only(0, "processes that decode images, per training process; 0: none of their own", ge=0)
    tracking: tuple[str, ...] = runtime_only(
        (), "experiment trackers that show the metrics: tensorboard, wandb, mlflow, ... (those of Accelerate)"
    )

    @field_validator("tracking", mode="before")
    @classmethod
    def _trackers_are_known(cls, tracking: Any) -> Any:
        names = tracking.split(",") if isinstance(tracking, str) else tracking
        if isinstance(names, list | tuple) and (unknown := [name for name in names if name not in known_trackers()]):
            raise ValueError(f"unknown tracker {unknown[0]!r}; known are {', '.join(known_trackers())}")
        return names

    @classmethod
    def with_new_names(cls, settings: dict[str, Any], is_silent: bool = False) -> dict[str, Any]:
        """Return settings with names of an earlier release replaced, values included; see `StageConfig`."""
        found = super().with_new_names(settings, is_silent)
        changed = []
        schedule, tracking = found.get("lr_schedule"), found.get("tracking")
        if isinstance(schedule, dict) and schedule.get("name") == "piecewise":
            found["lr_schedule"] = {**schedule, "name": "milestones"}
            changed.append("lr_schedule.name=piecewise is now lr_schedule.name=milestones")
        if isinstance(tracking, dict):
            name = tracking.get("name", "none")
            found["tracking"] = [] if name == "none" else [name]
            changed.append("tracking.name is now tracking, a list of names")
        for change in [] if is_silent else changed:
            log.warning(f"setting {change}; the old name will be refused in the next release")
        return found


class StepsConfig(TrainingConfig):
    """Settings of a training whose length is a number of steps."""

    steps: int = growable(20_000, "optimizer steps", ge=1)
    minutes: float | None = growable(
        None, "end after these minutes of training, over all its runs, where `steps` take longer; what depends on its "
        "length follows the time; None: no limit", gt=0
    )
    save_steps: tuple[int, ...] = runtime_only(
        (), "steps whose weights are kept in weights/; a stop signal keeps those of its step too"
    )


class CompiledConfig(TrainingConfig):
    """Settings of a training whose network can be compiled."""

    compile: bool = runtime_only(False, "torch.compile the network (CUDA only): slow to start, then faster")


class GroupsConfig(CompiledConfig):
    """Settings of a training over groups of faces that BatchNorm normalizes together."""

    groups_per_pass: int | None = batch_setting(
        None, "groups of norm_batch_size images in one forward and backward pass; more need more memory; None: 1 on a "
        "CPU, on a GPU as many as hold 128 images", ge=1
    )
    decoded: CacheChoice = runtime_only(
        "auto", "cache: decode each image once, to disk; fly: at every read; auto: cache where it pays and fits"
    )
    decoded_cache: Path | None = runtime_only(
        None, "folder of the decoded images, may be shared by runs; None: decoded/ in the output, until its end"
    )
