"""The training that `train-autoencoder` and `train-decoder` share.

The loop is in the open in `_train`. Whatever is random is a function of (seed, step, place in the global
batch), so neither the number of processes nor a kill changes what is learned. The loss is reconstruction in
pixels, in a recognizer's feature maps and embedding, the autoencoder's own penalties, and an adversarial term.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginSection,
    StageConfig,
    affects_result,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.console import progress
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.distributed import Processes, build_accelerator, check_device
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.models.face_autoencoder import TrainableAutoencoder
from facesyn_cli.models.loading import LATENTS_OF, latents_of
from facesyn_cli.training.autoencoder_batches import (
    AutoencoderBatchPlan,
    DecodedFaces,
    num_bytes,
    open_faces,
    photos_of,
)
from facesyn_cli.training.autoencoder_inputs import build_autoencoder, load_features, open_teacher
from facesyn_cli.training.autoencoder_loss import AutoencoderLoss, LossWeights
from facesyn_cli.training.autoencoder_state import AutoencoderState, StepSettings, build_adversary, take_step
from facesyn_cli.training.autoencoder_validation import Coder, ReconstructionValidation, write_reconstructions
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.discriminator import AdversarialSettings, smallest_side
from facesyn_cli.training.drawn_latents import DrawingInputs, DrawnSettings, drawn_latents, open_drawing
from facesyn_cli.training.ema import Ema, EmaSettings
from facesyn_cli.training.feature_distance import FeatureDistance
from facesyn_cli.training.horizon import check_horizon
from facesyn_cli.training.ldm_batches import read_ahead
from facesyn_cli.training.ldm_inputs import JoinedFaces, encoder, evenly, join_faces, latent_shape
from facesyn_cli.training.ldm_latents import fill_cache
from facesyn_cli.training.lr import LrSettings, set_lr
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.optimizer import OptimizerSettings, build_optimizer
from facesyn_cli.training.precision import Precision, autocast, check_precision, loss_scaler
from facesyn_cli.training.tracking import TrackingSettings

METRICS = "metrics.jsonl"  # loss and its terms, lr, grad_norm, images_per_s; val_psnr and val_cosine


class AutoencoderTrainingConfig(StageConfig):
    """Settings of both; `train-decoder` has other defaults."""

    renamed = {"optimiser": "optimizer"}

    images: Path | None = input_path(None, "folder or zip of faces; None: 0-images of the run")
    autoencoder: PluginConfig = PluginSection("autoencoder", default="face-kl")
    initial: Path | None = input_path(
        None, "folder of an autoencoder trained before, to start from; None: random numbers"
    )
    freeze_encoder: bool = affects_result(False, "train the decoder only: latents of `initial` keep their meaning")
    teacher: str | None = input_path(None, "autoencoder whose latents a decoder of ours learns: file, folder or hub id")
    image_size: int = affects_result(112, "side of the images, in pixels", ge=8)

    l1_weight: float = affects_result(1.0, "weight of the mean absolute difference of pixels in [-1, 1]", ge=0)
    mse_weight: float = affects_result(0.0, "weight of the mean squared difference of pixels in [-1, 1]", ge=0)
    kl_weight: float = affects_result(1e-6, "weight of the KL divergence, a mean over the elements of a latent", ge=0)
    codebook_weight: float = affects_result(1.0, "weight of the distance that moves codes to latents (VQ)", ge=0)
    commitment_weight: float = affects_result(
        0.25, "weight of the distance that moves latents to their codes (VQ)", ge=0
    )
    features: Path | None = input_path(None, "weights of a recognizer whose eyes judge reconstructions in the loss")
    features_model: PluginConfig | None = PluginSection("backbone", default=None)  # None: read off the weights
    features_coarsest: float = affects_result(
        1.0, "with features: it sees each step's images at a share of their side drawn from here to 1", gt=0, le=1
    )
    feature_weight: float = affects_result(0.1, "with features: weight of the distance of feature maps", ge=0)
    identity_weight: float = affects_result(0.1, "with features: weight of 1 - cosine of the embeddings", ge=0)
    adversarial: AdversarialSettings = affects_result(AdversarialSettings(), "discriminator of patches; weight 0: none")
    ldm: Path | None = input_path(None, "LDM on the latents of `initial`: what it draws is decoded beside the photos")
    embeddings: Path | None = input_path(
        None, "embeddings of photos, the contexts of what is drawn; None: 1-embeddings"
    )
    drawn: DrawnSettings = affects_result(DrawnSettings(), "how many latents are drawn with `ldm`, and how")

    steps: int = growable(20_000, "optimizer steps", ge=1)
    batch_size: int = affects_result(64, "images a step, all processes together", ge=1)
    optimizer: OptimizerSettings = affects_result(
        OptimizerSettings(lr=4e-4, betas=(0.9, 0.99), clip=1.0), "which optimizer, and its base learning rate"
    )
    lr_schedule: LrSettings = affects_result(
        LrSettings(warmup_steps=100), "how the learning rate moves; only `cosine` depends on `steps`"
    )
    ema: EmaSettings = affects_result(
        EmaSettings(maximum=0.999), "average of the weights; it is what is written in the end"
    )
    interpolation: float = affects_result(
        1.0, "share of the trained weights in what is written; the rest are those of `initial`", gt=0, le=1
    )
    precision: Precision = affects_result("fp32", "fp32, bf16 or fp16 (CUDA only); weights stay float32")
    flip: float = affects_result(0.5, "probability of training on the mirror image", ge=0, le=1)
    validation_fraction: float = affects_result(0.01, "share of the images held out for the validation", ge=0, lt=1)

    judge: Path | None = runtime_only(
        None, "weights of a recognizer that compares identities in validation; None: features"
    )
    validation_images: int = runtime_only(512, "at most so many held-out images are looked at", ge=1)
    validate_every: int = runtime_only(1000, "steps between validations; 0: never", ge=0)
    preview_every: int = runtime_only(1000, "steps between previews; 0: never", ge=0)
    preview_images: int = runtime_only(12, "images of a preview", ge=1)
    log_every: int = runtime_only(50, "steps between lines of metrics.jsonl", ge=1)
    checkpoint_every: int = runtime_only(1000, "steps between checkpoints", ge=1)
    keep_checkpoints: int = runtime_only(2, "checkpoints that stay; 1: none to fall back on", ge=1)
    memory_gib: float = runtime_only(8.0, "images are decoded once, to memory, where they take at most this", ge=0)
    workers: int = runtime_only(0, "processes that decode images, per training process; 0: none of their own", ge=0)
    tracking: TrackingSettings = runtime_only(TrackingSettings(), "who else gets the figures of the training")


@dataclass(frozen=True)
class _Inputs:
    folder: Path
    joined: JoinedFaces
    autoencoder: TrainableAutoencoder
    teacher: nn.Module | None
    features: FeatureDistance | None
    judge: FeatureDistance | None
    drawing: DrawingInputs | None
    latent_shape: tuple[int, int, int]
    parents: dict[str, Parent]

    def rows(self) -> list[int]:
        """Return the rows of all images that are looked at."""
        return self.joined.train_rows + self.joined.held_out_rows


def plan_training(cfg: AutoencoderTrainingConfig, work: Work) -> dict[str, Any]:
    """Return what `run_training` would do, after the same checks."""
    inputs = _open_inputs(cfg, work)
    state = check_output(inputs.folder, "Weights", cfg, inputs.parents)
    num_values = sum(p.numel() for p in inputs.autoencoder.parameters())
    num_train = len(inputs.joined.train_rows)
    size = num_bytes(len(inputs.rows()), cfg.image_size)
    return {
        "images": len(inputs.joined.faces),
        "trained on": num_train,
        "looked at in validation": len(inputs.joined.held_out_rows),
        "latent": "x".join(map(str, inputs.latent_shape)),
        "parameters": num_values,
        "of them trained": sum(p.numel() for p in _trained(cfg, inputs.autoencoder)),
        "steps": cfg.steps,
        "images a step": cfg.batch_size,
        "epochs": round(cfg.steps * cfg.batch_size / num_train, 2),
        "network evaluations": cfg.steps * cfg.batch_size * (2 if inputs.drawing else 1),  # a drawn latent each
        "images in memory": f"{size / 2**20:.0f} MiB" if size <= cfg.memory_gib * 2**30 else "no",
        "latents drawn": min(cfg.drawn.count, len(inputs.drawing.embeddings.keys)) if inputs.drawing else "none",
        "latent cache": f"{_cache(inputs, cfg).num_bytes / 2**20:.1f} MiB" if inputs.teacher else "none",
        "disk for checkpoints": f"{(cfg.keep_checkpoints + 1) * 16 * num_values / 2**20:.0f} MiB",
        "folder": f"{inputs.folder} ({state})",
    }


def run_training(cfg: AutoencoderTrainingConfig, work: Work, name: str) -> Outcome:
    """Train, or go on training, and write the averaged weights; `name` is the stage."""
    inputs = _open_inputs(cfg, work)
    processes = Processes(build_accelerator(cfg.device))
    processes.announce()
    check_precision(cfg.precision, processes.device.type)
    if processes.world_size > cfg.batch_size:
        raise UserError(f"batch_size {cfg.batch_size} cannot be shared by {processes.world_size} processes")
    with open_shared_output(processes, inputs.folder, "Weights", name, cfg, inputs.parents) as out:
        if not out.finished:
            figures = _train(cfg, inputs, processes, out, name)
            if processes.is_first:
                counts = {"steps": cfg.steps, "images": len(inputs.joined.train_rows)}
                extra = {"autoencoder": inputs.autoencoder.cfg.name, **figures}
                out.finish(counts, extra, file_digest(out.folder / "model.safetensors"))
            processes.barrier()
        if not processes.is_first:
            return Outcome(out.folder, {})
        return Outcome(out.folder, {**out.header.counts, **out.header.extra})


def _train(
    cfg: AutoencoderTrainingConfig, inputs: _Inputs, processes: Processes, out: Output, name: str
) -> dict[str, Any]:
    device, folder = processes.device, out.folder
    state = _state(cfg, inputs, device)
    initial = deepcopy(state.autoencoder.state_dict()) if cfg.interpolation < 1 else {}
    state.restore(folder / "checkpoints", processes)
    encode, decode = _coders(inputs, state, device)
    latents = _cache(inputs, cfg) if inputs.teacher is not None else None
    if latents is not None:
        fill_cache(latents, encoder(inputs.teacher, device), cfg.workers, processes)
    images = open_faces(inputs.joined.faces, inputs.rows(), cfg.memory_gib, cfg.workers)
    if state.step == 0 and cfg.initial is None:
        state.fit(photos_of(images, inputs.joined.train_rows, device))
    batch_plan = AutoencoderBatchPlan(
        cfg.seed, cfg.batch_size, local_share(cfg.batch_size, processes.rank, processes.world_size),
        inputs.joined.train_rows, cfg.flip, inputs.latent_shape, cfg.features_coarsest,
    )
    drawn = None
    if inputs.drawing is not None:
        drawn = drawn_latents(inputs.drawing, cfg.drawn, cfg.seed, folder, device, processes.is_first)
        processes.barrier()
    batches = batch_plan.batches(images, range(state.step, cfg.steps), latents, drawn)
    batches = read_ahead(batches) if isinstance(images, DecodedFaces) else batches  # workers read ahead themselves
    held_out = inputs.joined.held_out_rows
    validation = None
    if held_out and cfg.validate_every:
        judge = inputs.judge.to(device) if inputs.judge is not None else None
        validation = ReconstructionValidation(images.read(held_out), judge, cfg.batch_size, processes)
    shown = images.read(evenly(held_out or inputs.joined.train_rows, cfg.preview_images))
    features = inputs.features
    if features is not None:
        features = features.to(device, memory_format=torch.channels_last)
    loss = AutoencoderLoss(_weights(cfg), features)
    settings = StepSettings(cfg.batch_size, cfg.precision, cfg.optimizer.clip)
    figures = _last_figures(folder / METRICS)
    reported, started = state.step, time.monotonic()

    with ExitStack() as stack:
        metrics = None
        if processes.is_first:
            metrics = stack.enter_context(MetricsLog(folder / METRICS, state.step, cfg.tracking))
        bar = stack.enter_context(progress(name, cfg.steps, "steps", state.step))
        for batch in batches:
            lr = cfg.optimizer.lr * cfg.lr_schedule.factor(state.step, cfg.steps)
            set_lr(state.optimizer, lr)
            if state.adversary is not None:
                set_lr(state.adversary.optimizer, lr * cfg.adversarial.lr_factor)
            norm = take_step(state, batch, loss, settings, processes)
            step, is_last = state.step, state.step == cfg.steps

            is_stopping = processes.any(signals.received() is not None)
            if step % cfg.log_every == 0 or is_last:
                means = state.take_window(processes)
                figures["loss"] = means["loss"]
                seconds, started = time.monotonic() - started, time.monotonic()
                rate, reported = (step - reported) * cfg.batch_size / seconds, step
                if metrics is not None:
                    metrics.add(step, **means, lr=lr, grad_norm=norm, images_per_s=round(rate, 2))
            bar.advance(1, lr=lr, **figures)
            if validation is not None and (step % cfg.validate_every == 0 or is_last):
                seen = validation.figures(encode, decode, autocast(cfg.precision, device))
                figures.update(seen)
                if metrics is not None:
                    metrics.add(step, **seen)
            if processes.is_first and cfg.preview_every and (step % cfg.preview_every == 0 or is_last):
                write_reconstructions(folder / "previews" / f"step-{step:08d}.png", encode, decode, shown, device)
            if step % cfg.checkpoint_every == 0 or is_last or is_stopping:
                window = state.summed_window(processes)
                state.window = window if processes.is_first else {}
                if processes.is_first:
                    state.save(folder / "checkpoints", cfg.keep_checkpoints)
                processes.barrier()
            if is_stopping and not is_last:
                raise Stopped(signals.received() or signal.SIGTERM)

    if cfg.interpolation < 1:
        _interpolate(initial, state.ema.module, cfg.interpolation)
        if validation is not None:
            figures.update(validation.figures(encode, decode, autocast(cfg.precision, device)))
        if processes.is_first and cfg.preview_every:
            write_reconstructions(folder / "previews" / "interpolated.png", encode, decode, shown, device)
    if processes.is_first:
        write_weights(folder, state.ema.state_dict(), _description(cfg, inputs))
    return figures


def _open_inputs(cfg: AutoencoderTrainingConfig, work: Work) -> _Inputs:
    if cfg.device != "auto":
        check_device(cfg.device)
    cfg.tracking.check()
    folder = cfg.out or work.folder("autoencoder")
    check_horizon(folder, cfg.steps, cfg.lr_schedule.name)
    images_path = cfg.images or work.folder("images")
    if cfg.images is None and not images_path.exists():
        raise UserError(f"train-autoencoder needs faces: {images_path} does not exist; give --images a folder or zip")
    _check_settings(cfg)
    parents: dict[str, Parent] = {}
    teacher = open_teacher(cfg.teacher, cfg.image_size, parents) if cfg.teacher is not None else None
    autoencoder = build_autoencoder(cfg.autoencoder, cfg.seed, cfg.initial, teacher, parents)
    shape = latent_shape(autoencoder, cfg.image_size)
    features = judge = None
    if cfg.features is not None:
        features = load_features(
            cfg.features, cfg.features_model, "features", parents,
            use_maps=cfg.feature_weight > 0,
            use_embeddings=cfg.identity_weight > 0 or (cfg.ldm is not None and cfg.drawn.identity_weight > 0),
        )
    drawing = None
    if cfg.ldm is not None:
        compared = parents["features"].digest if cfg.features and cfg.drawn.identity_weight else None
        embeddings = cfg.embeddings or work.folder("embeddings")
        drawing = open_drawing(cfg.ldm, embeddings, cfg.initial, cfg.drawn, compared, parents)
    if cfg.judge is not None:
        judge = load_features(cfg.judge, None, "judge", {}, use_maps=False, use_embeddings=True)
    elif features is not None:
        judge = FeatureDistance(features.backbone, features.input_size, "features", use_maps=False)
    images = open_images(images_path)
    parents["images"] = images.parent()
    joined = join_faces(images, None, cfg.image_size, cfg.validation_fraction, cfg.validation_images)
    return _Inputs(folder, joined, autoencoder, teacher, features, judge, drawing, shape, parents)


def _check_settings(cfg: AutoencoderTrainingConfig) -> None:
    if cfg.interpolation < 1 and cfg.initial is None:
        raise UserError("interpolation mixes trained weights with those of a trained autoencoder: give initial=FOLDER")
    if cfg.freeze_encoder and (cfg.initial is None or cfg.teacher is not None):
        raise UserError("freeze_encoder=true keeps the encoder of a trained one: give initial=FOLDER and no teacher")
    if cfg.adversarial.weight and (smallest := smallest_side(cfg.adversarial.layers)) > cfg.image_size:
        raise UserError(f"adversarial.layers={cfg.adversarial.layers} needs images of side {smallest}, image_size is "
                        f"{cfg.image_size}; take fewer layers")
    if cfg.ldm is not None and not cfg.freeze_encoder:
        raise UserError("an ldm draws latents of a trained autoencoder: give initial=FOLDER and freeze_encoder=true")
    if cfg.ldm is None and (asked := {"embeddings", "drawn"} & cfg.model_fields_set):
        raise UserError(f"{', '.join(sorted(asked))} is about what an LDM draws: give ldm=FOLDER")
    if cfg.ldm is not None and not cfg.adversarial.weight and (cfg.features is None or not cfg.drawn.identity_weight):
        raise UserError("nothing says what faces of drawn latents should look like: give --features WEIGHTS, of the "
                        "recognizer that embedded the photos, or adversarial.weight")
    if cfg.features is None:
        stated = {name for name in cfg.model_fields_set if getattr(cfg, name)}
        if asked := {"feature_weight", "identity_weight", "features_model", "features_coarsest"} & stated:
            raise UserError(f"{', '.join(sorted(asked))} needs a recognizer: give --features WEIGHTS")
    elif not (cfg.feature_weight or cfg.identity_weight
              or (cfg.ldm is not None and cfg.drawn.identity_weight)):
        raise UserError("features was given, but feature_weight and identity_weight are both 0; leave features out")
    if not (cfg.l1_weight or cfg.mse_weight or cfg.features is not None):
        raise UserError("l1_weight and mse_weight are both 0 and there are no features: nothing says what to learn")


def _trained(cfg: AutoencoderTrainingConfig, autoencoder: TrainableAutoencoder) -> list[nn.Parameter]:
    frozen = {id(p) for p in autoencoder.latent_side()} if cfg.freeze_encoder else set()
    return [p for p in autoencoder.parameters() if id(p) not in frozen]


def _state(cfg: AutoencoderTrainingConfig, inputs: _Inputs, device: torch.device) -> AutoencoderState:
    autoencoder = inputs.autoencoder.to(device, memory_format=torch.channels_last).train().requires_grad_(False)
    trained = _trained(cfg, autoencoder)
    for parameter in trained:
        parameter.requires_grad_(True)
    return AutoencoderState(
        autoencoder, Ema(autoencoder, cfg.ema), build_optimizer(trained, cfg.optimizer),
        loss_scaler(cfg.precision, device), build_adversary(cfg.adversarial, cfg.optimizer, cfg.seed, device),
    )


@torch.no_grad()
def _interpolate(initial: dict[str, Tensor], trained: nn.Module, share: float) -> None:
    """Make every weight (1 - share) initial + share trained, in place.

    Network interpolation: Wang et al. 2018, ESRGAN, arXiv:1809.00219, section 3.4. A decoder that learned from a
    discriminator is sharp, and shows patterns; the one it began as is smooth.
    """
    for name, weight in trained.named_parameters():
        weight.lerp_(initial[name].to(weight), 1.0 - share)


def _coders(inputs: _Inputs, state: AutoencoderState, device: torch.device) -> tuple[Coder, Coder]:
    """Return encoder and decoder as they are to be judged: those that will be written."""
    if inputs.teacher is None:
        return state.ema.module.encode, state.ema.module.decode
    teacher = inputs.teacher.to(device)

    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):  # as its latents are cached
            return teacher.encode(pixels)

    return encode, state.ema.module.decode


def _cache(inputs: _Inputs, cfg: AutoencoderTrainingConfig) -> LatentCache:
    """Return the cache of the teacher's latents."""
    digest = inputs.parents["teacher"].digest
    return LatentCache(inputs.folder / "latents", inputs.joined.faces, digest, inputs.latent_shape, cfg.flip > 0)


def _weights(cfg: AutoencoderTrainingConfig) -> LossWeights:
    return LossWeights(
        cfg.l1_weight, cfg.mse_weight, cfg.feature_weight, cfg.identity_weight, cfg.kl_weight, cfg.codebook_weight,
        cfg.commitment_weight, cfg.drawn.identity_weight if cfg.ldm is not None else 0.0,
    )


def _description(cfg: AutoencoderTrainingConfig, inputs: _Inputs) -> dict[str, Any]:
    """Return the settings that are written beside the weights, and whose latents it decodes as well."""
    section = inputs.autoencoder.cfg.model_dump(mode="json")
    description = {"kind": "autoencoder", "autoencoder": section, "image_size": cfg.image_size}
    original = inputs.parents.get("teacher") or (inputs.parents["initial"] if cfg.freeze_encoder else None)
    if original is not None:
        description[LATENTS_OF] = [original.digest, *latents_of(original.path)]
    return description


def _last_figures(path: Path) -> dict[str, float]:
    """Return what an earlier run reported last, so that a header does not depend on when it was killed."""
    names = ("loss", "val_psnr", "val_cosine")
    return {name: line[name] for line in read_lines(path) for name in names if name in line}
