"""Train a face recognizer on packed records or folders of faces (`7-fr`).

The defaults are the published recipe (TFace as configured by ADMIS); see `configs/admis.yaml` for the quirks that are
off by default. The head is a softmax over all classes, which every process holds, or which are divided over processes.
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import field_validator, model_validator

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    affects_result,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.distributed import launched_processes
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.training.optimization import LrSchedule, OptimizerSettings
from facesyn_cli.training.sharded_classifier import classifier_memory
from facesyn_cli.training.shared_settings import GroupsConfig, TrainingConfig
from facesyn_cli.training.tasks.fr import FrTask, groups_of_a_step
from facesyn_cli.training.trainer import check_environment, join_processes, run_training


class ClassifierSettings(Settings):
    """How the classes of the head are held and used."""

    sharded: bool = runtime_only(
        False, "divide the classes with their optimizer state over the processes; for heads on cosines only"
    )
    sample_rate: float | None = affects_result(
        None, "Partial FC: share of the classes that a step uses, those of its own images included; top1 is then among "
        "these; None or 1: all", gt=0, le=1
    )

    @field_validator("sample_rate")
    @classmethod
    def _all_is_no_sample(cls, rate: float | None) -> float | None:
        return None if rate == 1 else rate

    @model_validator(mode="after")
    def _samples_are_sharded(self) -> ClassifierSettings:
        if self.sample_rate is not None and not self.sharded:
            raise ValueError("sample_rate needs sharded=true, which works in one process too")
        return self


class TrainFrConfig(GroupsConfig):
    """Settings of `facesyn train-fr`."""

    renamed = {
        **TrainingConfig.renamed, "lr": "optimizer.lr", "momentum": "optimizer.momentum",
        "weight_decay": "optimizer.weight_decay", "stages": "lr_schedule.milestones", "gamma": "lr_schedule.gamma",
        "warmup_steps": "lr_schedule.warmup_steps", "keep": "keep_checkpoints",
        "validation.fraction": "validation_fraction", "validation.num_pairs": "validation_pairs",
        "validation.bins": "validation_bins", "validation.every": "validate_every",
    }

    inputs: tuple[Path, ...] = input_path((), "record sets and image folders or zips; empty: 6-records of --work")
    input_weights: tuple[float, ...] = affects_result((), "factor of the loss of each input's images; empty: 1 each")
    input_starts: tuple[int, ...] | None = affects_result(
        None, "curriculum: the epoch from which each input takes part, the first from 1, then ascending; epochs before "
        "have as many steps, on the inputs that take part; None: all from the first"
    )
    backbone: PluginConfig = PluginSection("backbone", default="ir-50")
    head: PluginConfig = PluginSection("head", default="arcface")
    classifier: ClassifierSettings = affects_result(
        ClassifierSettings(), "sharded: divide the classes over processes, for many identities; the same result up to "
        "rounding; sample_rate: share of the classes that a step uses (Partial FC), None: all"
    )
    initial_backbone: Path | None = input_path(None, "weights of a recognizer to start from; empty: random weights")
    initial_head: Path | None = input_path(
        None, "classifier to start from: head.safetensors, or TFace's HEAD_Epoch_<E>"
    )
    transforms: list[PluginConfig] = PluginList("transform", default=["flip", "random-resized-crop"])
    epochs: int = growable(40, "passes over the data", ge=1)
    batch_size: int = affects_result(512, "images of one optimizer step, over all processes", ge=2)
    norm_batch_size: int = affects_result(
        64, "images that BatchNorm normalizes together; see groups_per_pass", ge=2
    )
    sync_batchnorm: bool = affects_result(
        False, "BatchNorm over the whole global batch; norm_batch_size is then unused"
    )
    optimizer: OptimizerSettings = affects_result(
        OptimizerSettings(name="sgd", lr=0.1, weight_decay=5e-4), "the optimizer and its base learning rate"
    )
    lr_schedule: LrSchedule = affects_result(
        LrSchedule(name="milestones", milestones=(22, 28, 32)), "how the learning rate changes; milestones are epochs"
    )
    decay_norms: bool = affects_result(False, "weight decay also on BatchNorm, which published code does by mistake")
    validation_fraction: float = affects_result(0.0, "share of the identities held out for validation", ge=0, lt=1)
    validation_pairs: int = affects_result(
        3000, "most genuine pairs of held-out identities, and as many impostor pairs", ge=10
    )
    validation_bins: tuple[Path, ...] = runtime_only((), "verification .bin files to validate on as well")
    validation_folders: tuple[Path, ...] = runtime_only(
        (), "folders or zips of identities to validate on as well: all pairs of their images, each identity with equal "
        "weight"
    )
    validate_every: int = runtime_only(1, "epochs between validations; 0: none", ge=0)
    workers: int = runtime_only(4, "threads that read and decode, per training process", ge=0)
    log_every: int = runtime_only(100, "steps between lines of metrics.jsonl; every epoch ends with one", ge=1)
    checkpoint_every: int = runtime_only(0, "steps between checkpoints; every epoch ends with one; 0: no others", ge=0)
    save_epochs: tuple[int, ...] = runtime_only((), "epochs after which the weights are kept, in epoch-E/")
    export_published: bool = runtime_only(
        False, "also write what TFace reads: Backbone_Epoch_E_checkpoint.pth and, of heads that TFace has a place for, "
        "HEAD_Epoch_E_checkpoint.pth, or with classifier.sharded=true HEAD_Epoch_E_Split_R_checkpoint.pth per process"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> TrainFrConfig:
        weights = self.input_weights
        if weights and len(weights) != max(1, len(self.inputs)):
            raise ValueError(f"input_weights has {len(weights)} values for {max(1, len(self.inputs))} inputs")
        if any(not (math.isfinite(w) and w >= 0) for w in weights) or (weights and not any(weights)):
            raise ValueError(f"input_weights must be 0 or more and not all 0, got {list(weights)}")
        return self

    @model_validator(mode="after")
    def _starts_ascend(self) -> TrainFrConfig:
        starts = self.input_starts
        if starts is not None and (starts[:1] != (1,) or list(starts) != sorted(starts) or starts[-1] > self.epochs):
            raise ValueError(f"input_starts must begin with 1 and not decrease, up to epochs={self.epochs}, got "
                             f"{list(starts)}")
        return self


def plan(cfg: TrainFrConfig, work: Work) -> Plan:
    """Return what `run` would do, after the same checks."""
    check_environment(cfg)
    task, count = FrTask(cfg, work), groups_of_a_step(cfg, launched_processes())
    num_values = task.num_parameters + task.embedding_size * task.faces.num_classes
    return task.plan(
        {
            "images": len(task.faces), "identities": task.faces.num_classes,
            "validation_pairs": sum(map(len, task.pairs)), "steps_per_epoch": task.epoch_steps,
            "steps": task.total_steps, "parameters": task.num_parameters, "processes": launched_processes(),
        },
        {"backbone": task.total_steps * cfg.batch_size},
        4 * num_values * (2 * (cfg.keep_checkpoints + 1) + 1 + len(cfg.save_epochs)) + task.cache_plan.num_bytes,
        **task.cache_plan.chosen(), groups_per_step=count, images_per_group=cfg.batch_size // count,
        **classifier_memory(
            task.faces.num_classes, task.embedding_size, cfg.batch_size // count, launched_processes(), cfg.optimizer,
            cfg.classifier.sharded, cfg.classifier.sample_rate,
        ),
    )


def run(cfg: TrainFrConfig, work: Work) -> Outcome:
    """Train, or resume, and write the weights."""
    processes = join_processes(cfg)
    groups_of_a_step(cfg, processes.world_size)
    return run_training(FrTask(cfg, work), processes)
