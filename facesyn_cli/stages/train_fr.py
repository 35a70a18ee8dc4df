"""Train a face recognizer on packed records or folders of faces.

The published recipe (TFace as configured by ADMIS) is what the defaults describe; see `configs/admis.yaml`
for the quirks that are off by default. The head is a full softmax over all classes, held by every process.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import nn

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.record_set import RecordSet, natural_labels
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.weights import write_tensors, write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    StageConfig,
    affects_result,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.console import log, progress
from facesyn_cli.data.datasets import LabeledImages, LabeledRecords, LabeledSet, TrainingFaces, WeightedSet
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import Processes, launched_processes, processes
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.evaluation.embedding import EmbedOptions
from facesyn_cli.evaluation.pairs import PairSet, read_bin
from facesyn_cli.evaluation.shared_verification import judge
from facesyn_cli.models.heads.margin import build_head
from facesyn_cli.plugins import registry
from facesyn_cli.training.bn_groups import (
    copy_from_first,
    decay_groups,
    num_groups,
    shared_groups,
    sum_gradients,
    use_global_norms,
)
from facesyn_cli.training.checkpoint import latest_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from facesyn_cli.training.epoch_batches import EpochBatches
from facesyn_cli.training.group_loader import load_groups
from facesyn_cli.training.held_out import Relabeled, held_out_pairs, split_identities
from facesyn_cli.training.initial_weights import InitialWeights, open_initial_weights
from facesyn_cli.training.lr import piecewise, set_lr, warmup
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.precision import DTYPES, Precision, check_precision
from facesyn_cli.training.recognition import Group, Recognizer
from facesyn_cli.training.tracking import TrackingSettings
from facesyn_cli.training.weights_export import export_published

METRICS = "metrics.jsonl"         # one line per report: step, epoch, loss, top1, lr, images_per_s; validation
IDENTITIES = "identities.json"    # [number of the input, identity] of every class of the head


class ValidationSettings(BaseModel):
    """How the network is judged while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = affects_result(0.0, "share of the identities that training does not see, for pairs", ge=0, lt=1)
    num_pairs: int = affects_result(3000, "most genuine pairs of held-out identities, and as many impostor ones", ge=10)
    bins: tuple[Path, ...] = runtime_only((), "verification .bin files to judge with as well")
    every: int = runtime_only(1, "epochs between two validations", ge=1)


class TrainFrConfig(StageConfig):
    """Settings of `facesyn train-fr`."""

    inputs: tuple[Path, ...] = input_path((), "record sets and image folders or zips; empty: 6-records of --work")
    input_weights: tuple[float, ...] = affects_result((), "factor of the loss of each input's images; empty: 1 each")
    backbone: PluginConfig = PluginSection("backbone", default="ir-50")
    head: PluginConfig = PluginSection("head", default="arcface")
    initial_backbone: Path | None = input_path(None, "weights of a recognizer to start from; empty: random numbers")
    initial_head: Path | None = input_path(
        None, "classifier to start from: head.safetensors, or TFace's HEAD_Epoch_<E>"
    )
    transforms: list[PluginConfig] = PluginList("transform", default=["flip", "random-resized-crop"])
    epochs: int = growable(40, "passes over the data", ge=1)
    batch_size: int = affects_result(512, "images of one optimizer step, of all processes together", ge=2)
    norm_batch_size: int = affects_result(64, "images that BatchNorm sees together; the memory of a process", ge=2)
    sync_batchnorm: bool = affects_result(
        False, "BatchNorm over the whole global batch; norm_batch_size is then unused"
    )
    lr: float = affects_result(0.1, "learning rate", gt=0)
    stages: tuple[int, ...] = affects_result(
        (22, 28, 32), "epochs after which the learning rate is multiplied by gamma"
    )
    gamma: float = affects_result(0.1, "factor of the learning rate at each stage", gt=0)
    warmup_steps: int = affects_result(0, "steps of linear rise of the learning rate", ge=0)
    momentum: float = affects_result(0.9, "momentum of SGD", ge=0, lt=1)
    weight_decay: float = affects_result(5e-4, "weight decay", ge=0)
    decay_norms: bool = affects_result(False, "weight decay also on BatchNorm, which published code does by mistake")
    precision: Precision = affects_result("fp32", "fp32, bf16 or fp16 (autocast; fp16 on CUDA only)")
    validation: ValidationSettings = affects_result(ValidationSettings(), "how the network is judged while it trains")
    workers: int = runtime_only(4, "threads that read and decode, for each training process", ge=0)
    log_every: int = runtime_only(100, "steps between two lines of metrics", ge=1)
    checkpoint_every: int = runtime_only(0, "steps between two checkpoints; 0: at the end of each epoch only", ge=0)
    keep: int = runtime_only(2, "checkpoints that stay; 1: none to fall back on", ge=1)
    save_epochs: tuple[int, ...] = runtime_only((), "epochs after which the weights are kept, in epoch-E/")
    export_published: bool = runtime_only(False, "also write Backbone_Epoch_E_checkpoint.pth, which TFace reads")
    tracking: TrackingSettings = runtime_only(TrackingSettings(), "who else gets the figures of the training")

    @field_validator("stages")
    @classmethod
    def _rises(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if list(stages) != sorted(set(stages)) or min(stages, default=1) < 1:
            raise ValueError("epochs in rising order, from 1, are expected")
        return stages

    @model_validator(mode="after")
    def _weights_fit(self) -> TrainFrConfig:
        weights = self.input_weights
        if weights and len(weights) != max(1, len(self.inputs)):
            raise ValueError(f"input_weights has {len(weights)} values for {max(1, len(self.inputs))} inputs")
        if any(not (math.isfinite(w) and w >= 0) for w in weights) or (weights and not any(weights)):
            raise ValueError(f"input_weights must be 0 or more and not all 0, got {list(weights)}")
        return self


def plan(cfg: TrainFrConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: counts, steps, parameters, disk."""
    data = _open(cfg, work)
    folder = cfg.out or work.folder("fr")
    state = check_output(folder, "Weights", cfg, data.parents)
    count = _num_groups(cfg, launched_processes())
    steps = EpochBatches(cfg.seed, len(data.faces), cfg.batch_size, cfg.batch_size // count).steps_per_epoch
    with torch.device("meta"):
        backbone = _build_backbone(cfg)
    num_parameters = sum(p.numel() for p in backbone.parameters())
    size = 4 * (num_parameters + _embedding_size(backbone) * data.faces.num_classes)
    return {
        "inputs": [parent.path for parent in data.parents.values()],
        "images": len(data.faces),
        "identities": data.faces.num_classes,
        "validation pairs": {pairs.name: len(pairs) for pairs in data.judges},
        "steps an epoch": steps,
        "steps": steps * cfg.epochs,
        "network evaluations": steps * cfg.epochs * cfg.batch_size,
        "groups a step": count,
        "images a group": cfg.batch_size // count,
        "processes": launched_processes(),
        "backbone parameters": num_parameters,
        "disk MiB": round(size * (2 * (cfg.keep + 1) + 1 + len(cfg.save_epochs)) / 2**20),
        "folder": str(folder),
        "state": state,
    }


def run(cfg: TrainFrConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the weights."""
    group = processes(cfg.device)
    check_precision(cfg.precision, group.device.type)
    _num_groups(cfg, group.world_size)
    data = _open(cfg, work)
    folder = cfg.out or work.folder("fr")
    with open_shared_output(group, folder, "Weights", "train-fr", cfg, data.parents) as out:
        if not out.finished:
            _Training(cfg, data, group, out).run()
        group.barrier()
        header = out.header
    return Outcome(folder, {**header.counts, **header.extra} if header else {})


class _Training:
    """Everything that moves while the network trains; `run` is the loop."""

    def __init__(self, cfg: TrainFrConfig, data: _Data, group: Processes, out: Output) -> None:
        self.cfg, self.data, self.group, self.out, self.folder = cfg, data, group, out, out.folder
        torch.manual_seed(cfg.seed)
        self.backbone = _build_backbone(cfg).to(group.device).train()
        size, num_classes = _embedding_size(self.backbone), data.faces.num_classes
        head = build_head(cfg.head)
        self.head = head.with_classes(num_classes, size, cfg.seed).to(group.device).train()
        if cfg.sync_batchnorm:
            use_global_norms(self.backbone, group.sum)
        count = _num_groups(cfg, group.world_size)
        self.groups = shared_groups(count, group.rank, group.world_size)
        self.batches = EpochBatches(cfg.seed, len(data.faces), cfg.batch_size, cfg.batch_size // count)
        self.per_epoch = self.batches.steps_per_epoch
        self.last = cfg.epochs * self.per_epoch
        self.parameters = [*self.backbone.parameters(), *self.head.parameters()]
        decayed = decay_groups(self.backbone, cfg.weight_decay, cfg.decay_norms)
        head_group = {"params": list(self.head.parameters()), "weight_decay": cfg.weight_decay}
        self.optimizer = torch.optim.SGD([*decayed, head_group], lr=cfg.lr, momentum=cfg.momentum)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=cfg.precision == "fp16")
        dtype = DTYPES[cfg.precision]
        self.recognizer = Recognizer(self.backbone, self.head, cfg.seed, cfg.batch_size, dtype, group.sum)
        self.step = 0

    def run(self) -> None:
        """Train up to the last epoch, then write the weights and the header."""
        cfg = self.cfg
        self._restore()
        per_process, size = len(self.groups), self.batches.group_size
        log.info(
            f"{self.last} steps of {cfg.batch_size} images of {self.data.faces.num_classes} identities: "
            f"{per_process} x {size} images on each of {self.group.world_size} processes"
        )
        self.metrics = MetricsLog(self.folder / METRICS, self.step, cfg.tracking) if self.group.is_first else None
        if len(self.data.faces) < cfg.batch_size:
            log.warning(f"{len(self.data.faces)} images are fewer than batch_size {cfg.batch_size}; it repeats them")
        seen, since, started = torch.zeros(3), self.step, time.monotonic()
        total, done = self.last * cfg.batch_size, self.step * cfg.batch_size
        watched = progress("train-fr", total, done=done)
        with watched as bar, closing(self._loaded()) as loaded, self.metrics or nullcontext():
            for groups in loaded:
                lr = self._lr()
                figures = self._take_step(groups, lr)
                seen += figures
                epoch = -(-self.step // self.per_epoch)
                is_epoch_end = self.step % self.per_epoch == 0
                bar.advance(cfg.batch_size, epoch=epoch, loss=figures[0].item())
                if self.step % cfg.log_every == 0 or is_epoch_end:
                    loss, top1, norm = (seen / (self.step - since)).tolist()
                    speed = (self.step - since) * cfg.batch_size / max(time.monotonic() - started, 1e-9)
                    self._report(epoch, loss=loss, top1=top1, gradient_norm=norm, lr=lr, images_per_s=round(speed, 1))
                    seen, since, started = torch.zeros(3), self.step, time.monotonic()
                if is_epoch_end:
                    self._end_epoch(epoch)
                    started = time.monotonic()
                is_stopping = self.group.any(signals.received() is not None)
                is_due = cfg.checkpoint_every > 0 and self.step % cfg.checkpoint_every == 0
                if is_epoch_end or is_due or is_stopping:
                    self._save(epoch)
                if is_stopping:
                    raise Stopped(signals.received() or signal.SIGTERM)
        self._finish()

    def _lr(self) -> float:
        """Return the learning rate of the step about to be taken."""
        factor = piecewise(self.step // self.per_epoch, self.cfg.stages, self.cfg.gamma)
        return self.cfg.lr * factor * warmup(self.step, self.cfg.warmup_steps)

    def _take_step(self, groups: list[Group], lr: float) -> torch.Tensor:
        """Take one optimizer step; return (3,) mean loss, top-1 share and gradient norm, on the CPU."""
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.scale(torch.ones((), device=self.group.device))
        figures = self.group.sum(self.recognizer.accumulate(groups, self.step, scale))
        sum_gradients(self.parameters, self.group.sum)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        figures = torch.cat([figures, norm[None]]).cpu()  # the one point where the CPU waits for the device
        checked = figures[:2] if self.scaler.is_enabled() else figures  # fp16: the scaler leaves out steps
        if not torch.isfinite(checked).all():
            raise UserError(
                f"step {self.step + 1} of {self.last}: loss {figures[0]:.4g}, gradient norm {figures[2]:.4g}; the step "
                f"was not taken. Start with another --out and a smaller lr (it is {lr:g}), more warmup_steps, or "
                f"precision fp32 (it is {self.cfg.precision})"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return figures

    def _loaded(self) -> Iterator[list[Group]]:
        """Yield this process's groups of every step still to take."""
        rows = self.batches.groups(self.step, self.last, self.groups)
        size, device = self.batches.group_size, self.group.device
        with closing(load_groups(self.data.faces, self.data.weights, rows, size, self.cfg.workers)) as loader:
            while self.step < self.last:
                groups, problem = [], ""
                try:
                    for number in self.groups:
                        groups.append(Group(number, *(part.to(device, non_blocking=True) for part in next(loader))))
                except UserError as error:
                    problem = str(error)
                self.group.raise_in_all(problem)
                yield groups

    def _end_epoch(self, epoch: int) -> None:
        """Validate, and keep the weights where asked."""
        copy_from_first(self.backbone, self.group.is_first, self.group.sum)
        if self.data.judges and (epoch % self.cfg.validation.every == 0 or self.step == self.last):
            self.backbone.eval()
            self._report(epoch, validation={pairs.name: self._judge(pairs) for pairs in self.data.judges})
            self.backbone.train()
        if self.group.is_first and epoch in self.cfg.save_epochs:
            self._write(self.folder / f"epoch-{epoch}", epoch)
        if self.group.is_first and self.cfg.export_published and epoch in (*self.cfg.save_epochs, self.cfg.epochs):
            export_published(self.backbone, self.folder, epoch)

    def _judge(self, pairs: PairSet) -> dict[str, float | None]:
        group, size = self.group, self.backbone.input_size
        options = EmbedOptions(size, self.batches.group_size, group.device, flip=True, fit="square")
        width = _embedding_size(self.backbone)
        agree = group.raise_in_all
        return judge(self.backbone, pairs, options, width, group.rank, group.world_size, group.sum, agree)

    def _report(self, epoch: int, **figures: Any) -> None:
        if self.metrics is not None:
            self.metrics.add(self.step, epoch=epoch, **figures)

    def _save(self, epoch: int) -> None:
        """Write a checkpoint; its running statistics are those of the first process."""
        if self.group.is_first:
            tensors = {
                "backbone": self.backbone.state_dict(),
                "head": self.head.state_dict(),
                "optimizer": pack_optimizer(self.optimizer),
            }
            state = {"epoch": epoch, "scaler": self.scaler.state_dict()}
            save_checkpoint(self.folder / "checkpoints", self.step, tensors, state, self.cfg.keep)
        self.group.barrier()

    def _restore(self) -> None:
        """Resume from the newest whole checkpoint, or start with the initial weights."""
        checkpoint = latest_checkpoint(self.folder / "checkpoints", self.group)
        if checkpoint is None:
            self.data.initial.put_into(self.backbone, self.head)
            return
        with checkpoint.fitting():
            self.backbone.load_state_dict(checkpoint.tensors("backbone"))
            self.head.load_state_dict(checkpoint.tensors("head"))
            unpack_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(checkpoint.state()["scaler"])
        self.step = checkpoint.step
        log.info(f"going on from step {self.step} of {self.last}")

    def _finish(self) -> None:
        """Write weights, labels and, last, the header."""
        if not self.group.is_first:
            return
        self._write(self.folder, self.cfg.epochs)
        write_tensors(self.folder / "head.safetensors", self.head.state_dict())
        write_json(self.folder / IDENTITIES, self.data.identities)
        lines = read_lines(self.folder / METRICS)
        last = {key: line[key] for line in lines for key in ("loss", "top1", "validation") if key in line}
        counts = {"epochs": self.cfg.epochs, "steps": self.step, "identities": self.data.faces.num_classes,
                  "images": len(self.data.faces)}
        self.out.finish(counts, extra=last, digest=file_digest(self.folder / "model.safetensors"))

    def _write(self, folder: Path, epoch: int) -> None:
        config = {
            "kind": "backbone",
            "backbone": self.cfg.backbone.model_dump(mode="json"),
            "input_size": self.backbone.input_size,
            "embedding_size": _embedding_size(self.backbone),
            "head": self.cfg.head.model_dump(mode="json"),
            "num_classes": self.data.faces.num_classes,
            "epochs": epoch,
        }
        write_weights(folder, self.backbone.state_dict(), config)


@dataclass(frozen=True)
class _Data:
    """What is trained on and judged with.

    Args:
        faces: Images and labels of all inputs.
        weights: Factor of the loss of each input.
        judges: Pair sets to validate with.
        parents: The inputs, for the header.
        identities: [number of the input, name] of every class.
        initial: Weights to start from.
    """

    faces: TrainingFaces
    weights: list[float]
    judges: list[PairSet]
    parents: dict[str, Parent]
    identities: list[list[int | str]]
    initial: InitialWeights


def _open(cfg: TrainFrConfig, work: Work) -> _Data:
    """Open and check all inputs."""
    cfg.tracking.check()
    with torch.device("meta"):
        backbone = _build_backbone(cfg)
    embedding_size = _embedding_size(backbone)
    paths = list(cfg.inputs) or [work.folder("records")]
    sets, parents, identities, held_out = [], {}, [], []
    for number, path in enumerate(paths):
        examples, names, parents[f"input-{number + 1}"] = _open_input(path)
        keys = [f"{number}/{name}" for name in names]
        part, rest = split_identities(examples, keys, cfg.seed, cfg.validation.fraction)
        sets.append(WeightedSet(part))
        held_out.append(rest)
        identities += [[number + 1, names[label]] for label in part.old_labels]
    if len(identities) < 2:
        raise UserError(
            f"{', '.join(map(str, paths))}: {len(identities)} identities to train on "
            f"(validation.fraction {cfg.validation.fraction:g}); at least 2 are needed"
        )
    faces = TrainingFaces(sets, compose(cfg.transforms), cfg.seed, backbone.input_size)
    weights = list(cfg.input_weights) or [1.0] * len(paths)
    head = build_head(cfg.head)
    head = head.with_classes(len(identities), embedding_size) if cfg.initial_head else None
    initial = open_initial_weights(cfg.initial_backbone, cfg.initial_head, cfg.backbone, backbone, head)
    return _Data(faces, weights, _judges(cfg, held_out), {**parents, **initial.parents}, identities, initial)


def _open_input(path: Path) -> tuple[LabeledSet, list[str], Parent]:
    """Open records or images; return them, the identity of every label, and the input for the header."""
    if RecordSet.recognizes(path):
        records = RecordSet.open(path)
        say_if_not_square(path, records.read, len(records))
        return LabeledRecords(records), records.identities, records.parent()
    images = ImageSet.open(path)
    warn_of_unclear_identities(images)
    names, _ = natural_labels(list(images.by_identity()))
    say_if_not_square(path, lambda row: images.read(images.entries[row]), len(images.entries))
    return LabeledImages(images), names, images.parent()


def _judges(cfg: TrainFrConfig, held_out: list[Relabeled]) -> list[PairSet]:
    """Return the pair sets to validate with: held-out identities of each input, and benchmark files."""
    judges = []
    for number, rest in enumerate(held_out, 1):
        pairs = held_out_pairs(rest.labels, cfg.validation.num_pairs, cfg.seed) if len(rest.labels) else None
        if pairs is None:
            if cfg.validation.fraction:
                log.warning(f"input {number}: {rest.num_classes} held-out identities give no pairs to validate with")
            continue
        rows, places = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
        first, second = np.split(places, 2)
        name = "held-out" if len(held_out) == 1 else f"held-out-{number}"
        names = [rest.name_of(row) for row in rows]
        folds = min(10, len(pairs.is_same))
        judges.append(PairSet(name, first, second, pairs.is_same, folds, names, partial(_read_row, rest, rows)))
    return judges + [read_bin(path, path.stem) for path in cfg.validation.bins]


def _read_row(examples: Relabeled, rows: NDArray[np.int64], index: int) -> bytes:
    return examples.read(int(rows[index]))


def _num_groups(cfg: TrainFrConfig, num_processes: int) -> int:
    """Return the number of BatchNorm groups of a step; with sync_batchnorm one per process."""
    if not cfg.sync_batchnorm:
        return num_groups(cfg.batch_size, cfg.norm_batch_size, num_processes)
    if cfg.batch_size % num_processes:
        raise UserError(f"batch_size {cfg.batch_size} does not divide over {num_processes} processes")
    return num_processes


def _build_backbone(cfg: TrainFrConfig) -> nn.Module:
    """Build the network with random weights."""
    if cfg.backbone.name == "onnx":
        raise UserError("backbone onnx is a finished network and cannot be trained; choose ir-50 or another of ours")
    return registry.build("backbone", cfg.backbone)


def _embedding_size(backbone: nn.Module) -> int:
    lacking = [name for name in ("embedding_size", "input_size") if not isinstance(getattr(backbone, name, None), int)]
    if lacking:
        raise UserError(f"backbone {type(backbone).__name__} has no {' and no '.join(lacking)}; see "
                        "facesyn_cli.models.interfaces.Backbone")
    return backbone.embedding_size
