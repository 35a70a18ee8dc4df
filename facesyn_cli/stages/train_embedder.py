"""Train a small recognizer to give the embeddings that a larger one has written (`1-embedder`).

The teacher itself is not needed: its embeddings come from `facesyn embed`, joined with the photos by key. Altered
views of a photo keep the target of the photo itself. The student therefore lives in the teacher's space, so that
embeddings and contexts of both can be compared; config and header say which teacher (`distilled_from`).

The loop is in the open in `_train`. Whatever is random is a function of (seed, step, place in the global batch), so
neither kills nor threads change what is learned; see `training/bn_groups.py` for the number of processes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import WeightsPrecision, write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    StageConfig,
    affects_result,
    batch_setting,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.console import log, progress
from facesyn_cli.data.datasets import TrainingFaces, WeightedSet
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import Processes, check_device, launched_processes, processes
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.plugins import registry
from facesyn_cli.training.bn_groups import copy_from_first, decay_groups, num_groups, shared_groups
from facesyn_cli.training.ema import EmaSettings
from facesyn_cli.training.embedder_data import TaughtFaces, join_teacher
from facesyn_cli.training.embedder_settings import StudentOptimizer, StudentSchedule, StudentValidation
from facesyn_cli.training.embedder_state import EmbedderState, StudentEma, take_step
from facesyn_cli.training.embedder_step import Distiller, TaughtGroup
from facesyn_cli.training.embedder_validation import agreement
from facesyn_cli.training.epoch_batches import EpochBatches
from facesyn_cli.training.group_loader import load_groups
from facesyn_cli.training.horizon import check_horizon
from facesyn_cli.training.initial_weights import InitialWeights, open_initial_weights
from facesyn_cli.training.lr import set_lr
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.optimizer import build_optimizer
from facesyn_cli.training.precision import DTYPES, Precision, check_precision, loss_scaler
from facesyn_cli.training.tracking import TrackingSettings

METRICS = "metrics.jsonl"  # loss, cosine, relational, grad_norm, lr, images_per_s; validation: cosine, rank1


class TrainEmbedderConfig(StageConfig):
    """Settings of `facesyn train-embedder`."""

    renamed = {"optimiser": "optimizer"}

    images: Path | None = input_path(None, "folder or zip of faces, or a packed set; None: 0-images of the run")
    embeddings: Path | None = input_path(
        None, "EmbeddingSet of the teacher, or published embeddings; None: 1-embeddings"
    )
    embedding_names: Path | None = input_path(
        None, "row-order list of a published array; None: image_names.* beside it"
    )
    backbone: PluginConfig = PluginSection("backbone", default="ir-lite")
    initial_backbone: Path | None = input_path(None, "weights of a recognizer to start from; None: random numbers")
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

    steps: int = growable(20_000, "optimizer steps", ge=1)
    batch_size: int = affects_result(64, "images of one optimizer step, of all processes together", ge=2)
    norm_batch_size: int = affects_result(64, "images that BatchNorm and the relational term see together", ge=2)
    optimizer: StudentOptimizer = affects_result(StudentOptimizer(), "which optimizer, and its base learning rate")
    lr_schedule: StudentSchedule = affects_result(
        StudentSchedule(), "how the learning rate moves; only `cosine` depends on `steps`"
    )
    ema: EmaSettings | None = affects_result(
        None, "average of the weights, which is then what is written; None: no average"
    )
    precision: Precision = affects_result("fp32", "fp32, bf16 or fp16 (CUDA only); weights stay float32")
    validation: StudentValidation = affects_result(StudentValidation(), "how the student is compared with the teacher")
    weights_precision: WeightsPrecision = batch_setting("fp32", "fp32, or fp16 for files of half the size")
    workers: int = runtime_only(2, "threads that read and decode, for each training process", ge=0)
    log_every: int = runtime_only(50, "steps between two lines of metrics", ge=1)
    checkpoint_every: int = runtime_only(500, "steps between two checkpoints", ge=1)
    keep_checkpoints: int = runtime_only(2, "checkpoints that stay; 1: none to fall back on", ge=1)
    save_steps: tuple[int, ...] = runtime_only((), "steps whose weights are kept in weights/; a stop adds one")
    tracking: TrackingSettings = runtime_only(TrackingSettings(), "who else gets the figures of the training")


@dataclass(frozen=True)
class _Inputs:
    folder: Path
    taught: TaughtFaces
    faces: TrainingFaces
    teacher: str | None
    initial: InitialWeights
    parents: dict[str, Parent]
    num_parameters: int
    input_size: int


def plan(cfg: TrainEmbedderConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: counts, steps, parameters, disk."""
    if cfg.device != "auto":
        check_device(cfg.device)
    inputs = _open(cfg, work)
    count = num_groups(cfg.batch_size, cfg.norm_batch_size, launched_processes())
    state = check_output(inputs.folder, "Weights", cfg, inputs.parents)
    copies = 3 if cfg.ema is None else 4  # weights, two moments, average
    return {
        "images": len(inputs.faces),
        "without an embedding": inputs.taught.num_without,
        "looked at in validation": len(inputs.taught.held_out.entries),
        "embedding": inputs.taught.train_targets.shape[1],
        "teacher": inputs.teacher or "unknown",
        "backbone": cfg.backbone.name,
        "backbone parameters": inputs.num_parameters,
        "steps": cfg.steps,
        "epochs": round(cfg.steps * cfg.batch_size / len(inputs.faces), 2),
        "network evaluations": cfg.steps * cfg.batch_size,
        "groups a step": count,
        "processes": launched_processes(),
        "disk MiB": round(4 * inputs.num_parameters * (copies * (cfg.keep_checkpoints + 1) + 1) / 2**20, 1),
        "folder": f"{inputs.folder} ({state})",
    }


def run(cfg: TrainEmbedderConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the weights."""
    group = processes(cfg.device)
    check_precision(cfg.precision, group.device.type)
    num_groups(cfg.batch_size, cfg.norm_batch_size, group.world_size)
    inputs = _open(cfg, work)
    with open_shared_output(group, inputs.folder, "Weights", "train-embedder", cfg, inputs.parents) as out:
        if not out.finished:
            extra = _train(cfg, inputs, group, out)
            if group.is_first:
                counts = {"steps": cfg.steps, "images": len(inputs.faces)}
                out.finish(counts, extra, file_digest(out.folder / "model.safetensors"))
        group.barrier()
        header = out.header
    return Outcome(inputs.folder, {**header.counts, **header.extra} if header else {})


def _train(cfg: TrainEmbedderConfig, inputs: _Inputs, group: Processes, out: Output) -> dict[str, Any]:
    folder, taught = out.folder, inputs.taught
    student = _build_student(cfg)
    inputs.initial.put_into(student, nn.Module())
    student.to(group.device).train()
    optimizer = build_optimizer(decay_groups(student, cfg.optimizer.weight_decay, False), cfg.optimizer)
    ema = None if cfg.ema is None else StudentEma(student, cfg.ema)
    state = EmbedderState(student, ema, optimizer, loss_scaler(cfg.precision, group.device))
    state.restore(folder / "checkpoints", group)
    if state.step:
        log.info(f"going on from step {state.step} of {cfg.steps}")
    distiller = Distiller(student, cfg.seed, cfg.batch_size, DTYPES[cfg.precision], cfg.relational_weight)
    log.info(
        f"train-embedder: {len(inputs.faces)} images to train on, {len(taught.held_out.entries)} for validation"
        + (f"; {taught.num_without} have no embedding and are left out" if taught.num_without else "")
        + f"; {cfg.backbone.name} of {inputs.num_parameters} parameters, {cfg.steps} steps of {cfg.batch_size} images"
    )
    metrics = MetricsLog(folder / METRICS, state.step, cfg.tracking) if group.is_first else None
    reported, started = state.step, time.monotonic()
    with (
        progress("train-embedder", cfg.steps, "steps", state.step) as bar,
        closing(_loaded(cfg, inputs, group, state.step)) as batches,
        metrics or nullcontext(),
    ):
        for groups in batches:
            lr = cfg.optimizer.lr * cfg.lr_schedule.factor(state.step, cfg.steps)
            set_lr(state.optimizer, lr)
            loss = take_step(state, distiller, groups, cfg.optimizer.clip, group.sum)
            step, is_last = state.step, state.step == cfg.steps
            bar.advance(1, loss=loss)
            if step % cfg.log_every == 0 or is_last:
                seconds, started = time.monotonic() - started, time.monotonic()
                rate, reported = (step - reported) * cfg.batch_size / max(seconds, 1e-9), step
                figures = state.take_window()
                if metrics is not None:
                    metrics.add(step, **figures, lr=lr, images_per_s=round(rate, 1))
            if taught.held_out.entries and (is_last or (cfg.validation.every and step % cfg.validation.every == 0)):
                paused = time.monotonic()
                validation = _validate(cfg, inputs, state, group)
                started += time.monotonic() - paused
                if metrics is not None:
                    metrics.add(step, validation=validation)
            is_stopping = group.any(signals.received() is not None)
            if (step in cfg.save_steps or is_stopping) and group.is_first:  # a stopped training can be used
                _write(folder / "weights" / f"step-{step:08d}", cfg, inputs, state)
            if step % cfg.checkpoint_every == 0 or is_last or is_stopping:
                if group.is_first:
                    state.save(folder / "checkpoints", cfg.keep_checkpoints)
                group.barrier()
            if is_stopping and not is_last:
                raise Stopped(signals.received() or signal.SIGTERM)
    if group.is_first:
        _write(folder, cfg, inputs, state)
    lines = read_lines(folder / METRICS)
    last = {key: line[key] for line in lines for key in ("loss", "validation") if key in line}
    return {"backbone": cfg.backbone.name, "distilled_from": inputs.teacher, **last}


def _loaded(cfg: TrainEmbedderConfig, inputs: _Inputs, group: Processes, step: int) -> Iterator[list[TaughtGroup]]:
    """Yield this process's groups of every step still to take."""
    count = num_groups(cfg.batch_size, cfg.norm_batch_size, group.world_size)
    size, mine = cfg.batch_size // count, shared_groups(count, group.rank, group.world_size)
    rows = EpochBatches(cfg.seed, len(inputs.faces), cfg.batch_size, size).groups(step, cfg.steps, mine)
    targets, device = inputs.taught.train_targets, group.device
    with closing(load_groups(inputs.faces, [1.0], rows, size, cfg.workers)) as loader:
        for _ in range(step, cfg.steps):
            groups, problem = [], ""
            try:
                for number in mine:
                    pixels_u8, labels, _ = next(loader)
                    groups.append(TaughtGroup(number, *(part.to(device) for part in (pixels_u8, targets[labels]))))
            except UserError as error:
                problem = str(error)
            group.raise_in_all(problem)
            yield groups


def _validate(cfg: TrainEmbedderConfig, inputs: _Inputs, state: EmbedderState, group: Processes) -> dict[str, float]:
    """Compare the held-out photos' embeddings with the teacher's; all processes call it together."""
    network, taught = state.result, inputs.taught
    copy_from_first(network, group.is_first, group.sum)
    size, faces = min(cfg.norm_batch_size, cfg.batch_size), taught.held_out
    options = EmbedOptions(inputs.input_size, size, group.device, flip=False, fit="square", workers=max(1, cfg.workers))
    embeddings, problem = torch.zeros_like(taught.held_out_targets), ""
    network.eval()
    batches = share(fixed_batches(len(faces.entries), size), group.rank, group.world_size)
    for batch in FaceEmbedder(network, options).files(faces.read, batches):
        embeddings[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
        for index, reason in batch.problems.items():
            problem = problem or f"{faces.name_of(index)} is unreadable: {reason}"
    state.student.train()
    group.raise_in_all(problem)
    return agreement(group.sum(embeddings.to(group.device)).cpu(), taught.held_out_targets)


def _write(folder: Path, cfg: TrainEmbedderConfig, inputs: _Inputs, state: EmbedderState) -> None:
    config = {
        "kind": "backbone",
        "backbone": cfg.backbone.model_dump(mode="json"),
        "input_size": inputs.input_size,
        "embedding_size": inputs.taught.train_targets.shape[1],
        "distilled_from": inputs.teacher,
        "steps": state.step,
    }
    write_weights(folder, state.result.state_dict(), config, precision=cfg.weights_precision)


def _open(cfg: TrainEmbedderConfig, work: Work) -> _Inputs:
    """Open and check all inputs."""
    cfg.tracking.check()
    folder = cfg.out or work.folder("embedder")
    check_horizon(folder, cfg.steps, cfg.lr_schedule.name)
    with torch.device("meta"):
        student = _build_student(cfg)
    images_path = cfg.images or work.folder("images")
    if cfg.images is None and not images_path.exists():
        raise UserError(f"train-embedder needs faces: {images_path} does not exist; give --images a folder or zip")
    images = open_images(images_path)
    embeddings = EmbeddingSet.open(cfg.embeddings or work.folder("embeddings"), cfg.embedding_names)
    width = embeddings.vectors.shape[1]
    if student.embedding_size != width:
        raise UserError(
            f"backbone.embedding_size is {student.embedding_size}, but the teacher's embeddings in {embeddings.path} "
            f"have {width} numbers; set backbone.embedding_size={width}"
        )
    taught = join_teacher(images, embeddings, cfg.validation.fraction, cfg.validation.images)
    faces = TrainingFaces([WeightedSet(taught.train)], compose(cfg.transforms), cfg.seed, student.input_size)
    initial = open_initial_weights(cfg.initial_backbone, None, cfg.backbone, student, None)
    parents = {"images": images.parent(), "embeddings": embeddings.parent(), **initial.parents}
    num_parameters = sum(p.numel() for p in student.parameters())
    return _Inputs(folder, taught, faces, embeddings.embedder, initial, parents, num_parameters, student.input_size)


def _build_student(cfg: TrainEmbedderConfig) -> nn.Module:
    """Build the network; its random weights depend on the seed alone."""
    if cfg.backbone.name == "onnx":
        raise UserError("backbone onnx is a finished network and cannot be trained; choose ir-lite or another of ours")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return registry.build("backbone", cfg.backbone)
