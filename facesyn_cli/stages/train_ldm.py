"""Train a latent diffusion model on faces and their embeddings (`2-ldm`).

The loop is in the open in `_train`. Whatever is random is a function of (seed, step, place in the global
batch), so neither the number of processes nor accumulation changes what is learned, and a run that was
killed and started again ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.embeddings import EmbeddingSet
from facesyn_cli.artifacts.files import read_json
from facesyn_cli.artifacts.ldm import LdmSettings
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import BEGUN, HEADER, Output, Parent, check_output
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginSection,
    StageConfig,
    growing,
    identity,
    recorded,
    runtime,
    source,
)
from facesyn_cli.console import log, progress
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.diffusion.schedule import NoiseSchedule, build_schedule
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.ema import Ema, EmaSettings
from facesyn_cli.training.ldm_batches import Batch, BatchPlan, read_ahead, training_batches
from facesyn_cli.training.ldm_export import check_exportable, export_published
from facesyn_cli.training.ldm_inputs import (
    JoinedFaces,
    build_denoiser,
    encoder,
    evenly,
    is_conditional,
    join_faces,
    latent_shape,
)
from facesyn_cli.training.ldm_latents import CachedLatents, EncodedLatents, fill_cache, latent_statistics
from facesyn_cli.training.ldm_state import GradientSettings, LdmState, take_step
from facesyn_cli.training.ldm_validation import Validation, validation_places
from facesyn_cli.training.lr import LrSettings, depends_on_horizon, set_lr
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.optimiser import OptimiserSettings, build_optimiser
from facesyn_cli.training.precision import DTYPES, Precision, autocast, check_precision, loss_scaler
from facesyn_cli.training.previews import Previews
from facesyn_cli.training.processes import Processes, build_accelerator, check_device, launched_processes

STATISTICS_IMAGES = 10_000


class TrainLdmConfig(StageConfig):
    """Settings of `facesyn train-ldm`. Where nothing else is said, the defaults are the published ones."""

    images: Path | None = source(None, "folder or zip of faces; None: 0-images of the run")
    embeddings: Path | None = source(None, "EmbeddingSet or published embeddings; None: 1-embeddings of the run")
    embedding_names: Path | None = source(None, "row-order list of a published array; None: image_names.* beside it")
    autoencoder: str | None = source(None, "weights of the autoencoder: file, folder or hub id")
    autoencoder_model: PluginConfig | None = PluginSection("autoencoder", default=None)  # None: read off the weights
    denoiser: PluginConfig = PluginSection("denoiser", default="idiff-unet")

    image_size: int = identity(128, "side of the images the autoencoder sees, in pixels", ge=8)
    output_size: int = identity(112, "side of the images that `sample` will write, in pixels", ge=8)
    latent_statistics: Literal["auto", "measured", "identity"] = identity(
        "auto", "normalise latents by measured mean and std of each channel; auto: not for vq-f4, as published"
    )
    num_timesteps: int = identity(1000, "timesteps T of the noise schedule", ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = identity("linear", "shape of the noise schedule")
    beta_start: float = identity(1e-4, "first beta at T = 1000", gt=0, lt=1)
    beta_end: float = identity(0.02, "last beta at T = 1000", gt=0, lt=1)
    zero_terminal_snr: bool = identity(False, "rescale the schedule to end in pure noise; needs prediction v or x0")
    prediction: Literal["epsilon", "v", "x0"] = identity(
        "epsilon", "what the denoiser predicts; with few steps v learns more than epsilon, with very few x0 more than v"
    )
    min_snr_gamma: float | None = identity(None, "weigh the loss by min(SNR, gamma), 5 in the paper; None: no", gt=0)

    steps: int = growing(200_000, "optimizer steps", ge=1)
    batch_size: int = identity(64, "images a step, all processes together", ge=1)
    micro_batch: int | None = runtime(None, "most images a forward pass; None: a process's whole share", ge=1)
    optimiser: OptimiserSettings = identity(OptimiserSettings(), "which optimizer, and its base learning rate")
    lr_schedule: LrSettings = identity(
        LrSettings(name="cosine-warm-restarts"), "how the learning rate moves; only `cosine` depends on `steps`"
    )
    ema: EmaSettings = identity(EmaSettings(), "average of the weights; it is what is written in the end")
    precision: Precision = identity("fp32", "fp32, bf16 or fp16 (CUDA only); weights stay float32")
    flip: float = identity(0.5, "probability of training on the mirror image", ge=0, le=1)
    context_dropout: float = identity(
        0.0, "probability of training an image under the empty context, for guidance", ge=0, le=1
    )
    validation_fraction: float = identity(0.01, "share of the images held out for the validation loss", ge=0, lt=1)

    latents: Literal["cache", "fly"] = recorded("cache", "cache: encode all once, to disk; fly: at every step")
    latent_cache: Path | None = runtime(None, "folder of the cache, may be shared by runs; None: latents/ in out")
    validation_images: int = runtime(1024, "at most so many held-out images are looked at", ge=1)
    validate_every: int = runtime(1000, "steps between validations; 0: never", ge=0)
    preview_every: int = runtime(2000, "steps between preview grids; 0: never", ge=0)
    preview_identities: int = runtime(6, "rows of a preview grid", ge=1)
    preview_samples: int = runtime(4, "samples a row", ge=1)
    preview_steps: int = runtime(25, "DDIM steps of a preview", ge=1)
    log_every: int = runtime(50, "steps between lines of metrics.jsonl", ge=1)
    checkpoint_every: int = runtime(1000, "steps between checkpoints", ge=1)
    keep_checkpoints: int = runtime(2, "checkpoints that stay on disk", ge=1)
    save_steps: tuple[int, ...] = runtime((), "steps whose averaged weights are kept in weights/; a stop adds one")
    export_published: bool = runtime(False, "also write ema_averaged_model_<step>.ckpt for the published code")
    compile: bool = runtime(False, "torch.compile the denoiser (CUDA only): slow to start, then faster")
    workers: int = runtime(0, "processes that decode images, per training process; 0: none of their own", ge=0)


@dataclass(frozen=True)
class _Inputs:
    folder: Path
    joined: JoinedFaces
    autoencoder: nn.Module
    latent_shape: tuple[int, int, int]
    denoiser: nn.Module
    schedule: NoiseSchedule
    embedder: str | None
    parents: dict[str, Parent]
    num_images: int


def plan(cfg: TrainLdmConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do, after the same checks."""
    inputs = _open_inputs(cfg, work)
    state = check_output(inputs.folder, "Weights", cfg, inputs.parents)
    num_values = sum(p.numel() for p in inputs.denoiser.parameters())
    num_train = len(inputs.joined.train_rows)
    cache = _cache(cfg, inputs)
    return {
        "images": inputs.num_images,
        "with embeddings": 0 if inputs.joined.contexts is None else len(inputs.joined.faces),
        "trained on": num_train,
        "looked at in validation": len(inputs.joined.held_out_rows),
        "latent": "x".join(map(str, inputs.latent_shape)),
        "denoiser parameters": num_values,
        "steps": cfg.steps,
        "images a step": cfg.batch_size,
        "epochs": round(cfg.steps * cfg.batch_size / num_train, 2),
        "network evaluations": cfg.steps * cfg.batch_size,
        "latent cache": f"{cache.num_bytes / 2**20:.1f} MiB" if cfg.latents == "cache" else "none",
        "disk for checkpoints": f"{(cfg.keep_checkpoints + 1) * 16 * num_values / 2**20:.0f} MiB",
        "memory for weights, gradients, averages": f"{20 * num_values / 2**20:.0f} MiB",
        "folder": f"{inputs.folder} ({state})",
    }


def run(cfg: TrainLdmConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the averaged weights."""
    inputs = _open_inputs(cfg, work)
    processes = Processes(build_accelerator(cfg.device, **_wrapper_options(cfg)))
    processes.announce()
    check_precision(cfg.precision, processes.device.type)
    if cfg.compile and processes.device.type != "cuda":
        raise UserError(f"compile=true needs a CUDA device, this run is on {processes.device.type}")
    if processes.count > cfg.batch_size:
        raise UserError(f"batch_size {cfg.batch_size} cannot be shared by {processes.count} processes")
    with processes.open_output(inputs.folder, "Weights", "train-ldm", cfg, inputs.parents) as out:
        if not out.finished:
            _log_counts(cfg, inputs)
            extra = _train(cfg, inputs, processes, out)
            if processes.is_first:
                counts = {"steps": cfg.steps, "images": len(inputs.joined.train_rows)}
                out.finish(counts, extra, file_digest(out.folder / "model.safetensors"))
            processes.barrier()
        if not processes.is_first:
            return Outcome(out.folder, {})
        return Outcome(out.folder, {**out.header.counts, **out.header.extra})


def _train(cfg: TrainLdmConfig, inputs: _Inputs, processes: Processes, out: Output) -> dict[str, Any]:
    device, folder = processes.device, out.folder
    autoencoder = inputs.autoencoder.to(device)
    latents = _latents(cfg, inputs, processes, encoder(autoencoder, device))
    settings = _settings(cfg, inputs, *_statistics(cfg, inputs, processes, latents))
    mean, std = _channels(settings.latent_mean, 0.0, device), _channels(settings.latent_std, 1.0, device)

    denoiser = inputs.denoiser.to(device).train()
    state = LdmState(
        denoiser, Ema(denoiser, cfg.ema), build_optimiser(denoiser.parameters(), cfg.optimiser),
        loss_scaler(cfg.precision, device), torch.zeros(2, dtype=torch.float64, device=device),
    )
    state.restore(folder / "checkpoints", processes.is_first)
    if cfg.compile:
        denoiser.compile()
    model = processes.accelerator.prepare_model(denoiser)
    gradient = GradientSettings(
        cfg.batch_size, processes.count, cfg.micro_batch, cfg.precision, cfg.optimiser.clip,
        cfg.min_snr_gamma,
    )

    batch_plan = _batch_plan(cfg, inputs, processes)
    steps = range(state.step, cfg.steps)
    stream = latents.stream(batch_plan.rows(step) for step in steps)
    batches = training_batches(batch_plan, stream, inputs.joined.contexts, steps)
    batches = read_ahead(batches) if cfg.latents == "cache" else batches  # worker processes read ahead themselves
    validation = _validation(cfg, inputs, processes, latents, mean, std)
    previews = _previews(cfg, inputs, autoencoder, mean, std, device) if processes.is_first else None
    metrics = MetricsLog(folder / "metrics.jsonl", state.step) if processes.is_first else None
    figures = _last_figures(folder / "metrics.jsonl") if metrics is not None else {}
    reported, started = state.step, time.monotonic()

    with progress("train-ldm", cfg.steps, "steps", state.step) as bar:
        for batch in batches:
            lr = cfg.optimiser.lr * cfg.lr_schedule.factor(state.step, cfg.steps)
            set_lr(state.optimiser, lr)
            batch = Batch(
                (batch.latents.to(device) - mean) / std,
                None if batch.contexts is None else batch.contexts.to(device),
                batch.draws.to(device),
            )
            norm = take_step(state, model, batch, inputs.schedule, gradient)
            step, is_last = state.step, state.step == cfg.steps

            is_stopping = processes.any(signals.received() is not None)
            if step % cfg.log_every == 0 or is_last:
                total, count = processes.sum(state.loss_window).tolist()
                state.loss_window.zero_()
                figures["loss"] = total / count
                seconds, started = time.monotonic() - started, time.monotonic()
                rate, reported = (step - reported) * cfg.batch_size / seconds, step
                if metrics is not None:
                    metrics.add(step, loss=figures["loss"], lr=lr, grad_norm=norm, images_per_s=round(rate, 2))
            bar.advance(1, lr=lr, **figures)
            if validation is not None and (_is_due(step, cfg.validate_every) or (is_last and cfg.validate_every)):
                sums = validation.loss_sum(state.ema.module, autocast(cfg.precision, device))
                total, count = processes.sum(sums).tolist()
                figures["val_loss"] = total / count
                if metrics is not None:
                    metrics.add(step, val_loss=figures["val_loss"])
            if previews is not None and (_is_due(step, cfg.preview_every) or (is_last and cfg.preview_every)):
                previews.write(state.ema.module, folder / "previews" / f"step-{step:08d}.png")
            if (step in cfg.save_steps or is_stopping) and processes.is_first:  # a stopped training can be sampled
                _write_weights(folder / "weights" / f"step-{step:08d}", state, settings)
            if step % cfg.checkpoint_every == 0 or is_last or is_stopping:
                window = processes.sum(state.loss_window)
                state.loss_window = window if processes.is_first else torch.zeros_like(window)
                if processes.is_first:
                    state.save(folder / "checkpoints", cfg.keep_checkpoints)
                processes.barrier()
            if is_stopping and not is_last:
                raise Stopped(signals.received() or signal.SIGTERM)

    if processes.is_first:
        _write_weights(folder, state, settings)
        if cfg.export_published:
            export_published(folder, state.step, state.ema.state_dict(), inputs.schedule)
    return {"denoiser": cfg.denoiser.name, **figures}


def _write_weights(folder: Path, state: LdmState, settings: LdmSettings) -> None:
    write_weights(folder, state.ema.state_dict(), settings.model_dump(mode="json"))


def _last_figures(path: Path) -> dict[str, float]:
    """Return what an earlier run reported last, so that a header does not depend on when it was killed."""
    return {name: line[name] for line in read_lines(path) for name in ("loss", "val_loss") if name in line}


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _open_inputs(cfg: TrainLdmConfig, work: Work) -> _Inputs:
    if cfg.device != "auto":
        check_device(cfg.device)
    folder = cfg.out or work.folder("ldm")
    _check_horizon(folder, cfg)
    if cfg.output_size > cfg.image_size:
        log.warning(f"output_size {cfg.output_size} is larger than image_size {cfg.image_size}: images will be blurred")
    images_path = cfg.images or work.folder("images")
    if cfg.images is None and not images_path.exists():
        raise UserError(f"train-ldm needs faces: {images_path} does not exist; give --images a folder or zip")
    if cfg.autoencoder is None and cfg.autoencoder_model is None:
        raise UserError("train-ldm needs an autoencoder: give --autoencoder FILE, folder or hub id")
    autoencoder = load_autoencoder(
        _absolute(cfg.autoencoder), cfg.autoencoder_model, "both" if cfg.preview_every else "encoder"
    )
    if cfg.export_published:
        check_exportable(cfg.denoiser, cfg.beta_schedule, cfg.prediction, _is_normalised(cfg, autoencoder))
    shape = latent_shape(autoencoder, cfg.image_size)
    schedule = build_schedule(
        cfg.beta_schedule, cfg.num_timesteps, cfg.beta_start, cfg.beta_end, cfg.zero_terminal_snr, cfg.prediction
    )
    images = open_images(images_path)
    section = autoencoder.section
    digest = section["digest"] or json_digest([section["name"], section["settings"]])
    parents = {"images": images.parent(), "autoencoder": Parent(section["path"] or section["name"], digest)}
    embeddings = None
    if getattr(cfg.denoiser, "conditioning", None) != "unconditional":
        embeddings = EmbeddingSet.open(cfg.embeddings or work.folder("embeddings"), cfg.embedding_names)
        parents["embeddings"] = embeddings.parent()
    elif cfg.embeddings is not None:
        raise UserError("embeddings were given, but the denoiser is unconditional; leave one of the two out")
    joined = join_faces(images, embeddings, cfg.image_size, cfg.validation_fraction, cfg.validation_images)
    size = 0 if embeddings is None else embeddings.vectors.shape[1]
    denoiser = build_denoiser(cfg.denoiser, cfg.seed, shape, size)
    if cfg.context_dropout and not is_conditional(denoiser):
        raise UserError("context_dropout needs a conditional denoiser; this one is unconditional")
    return _Inputs(
        folder, joined, autoencoder, shape, denoiser, schedule, embeddings.embedder if embeddings else None, parents,
        len(images.entries),
    )


def _absolute(path: str | None) -> str | None:
    """A local path is remembered in full, so that `sample` finds it from anywhere; a hub id stays as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _check_horizon(folder: Path, cfg: TrainLdmConfig) -> None:
    """A cosine to the end of training cannot be extended: earlier steps would have had other rates."""
    for path in (folder / BEGUN, folder / HEADER):
        if path.is_file():
            before = (read_json(path).get("config") or {}).get("growing", {}).get("steps", cfg.steps)
            if before != cfg.steps and depends_on_horizon(cfg.lr_schedule.name):
                raise UserError(
                    f"{folder} was begun with steps={before}; lr_schedule {cfg.lr_schedule.name} depends on it, so it "
                    f"cannot become {cfg.steps}. Use constant, cosine-warm-restarts or piecewise, or another --out"
                )
            return


def _log_counts(cfg: TrainLdmConfig, inputs: _Inputs) -> None:
    joined, faces = inputs.joined, inputs.joined.faces
    without = inputs.num_images - len(faces)
    log.info(
        f"train-ldm: {len(joined.train_rows)} images to train on, {len(joined.held_out_rows)} for validation"
        + (f"; {without} of {inputs.num_images} have no embedding and are left out" if without else "")
        + f"; {sum(p.numel() for p in inputs.denoiser.parameters())} parameters, "
        f"{cfg.steps * cfg.batch_size / len(joined.train_rows):.3g} epochs"
    )


def _wrapper_options(cfg: TrainLdmConfig) -> dict[str, Any]:
    if launched_processes() == 1:
        return {}
    from accelerate import DistributedDataParallelKwargs

    # Looking for unused parameters keeps the gradient buckets as they are from the first step on, so that
    # sums over processes are rounded alike before and after a resume.
    return {"kwargs_handlers": [DistributedDataParallelKwargs(find_unused_parameters=True)]}


def _cache(cfg: TrainLdmConfig, inputs: _Inputs) -> LatentCache:
    place = cfg.latent_cache or inputs.folder / "latents"
    digest = inputs.parents["autoencoder"].digest
    return LatentCache(place, inputs.joined.faces, digest, inputs.latent_shape, has_mirror=cfg.flip > 0)


def _latents(
    cfg: TrainLdmConfig, inputs: _Inputs, processes: Processes, encode: Callable[[Tensor], Tensor]
) -> CachedLatents | EncodedLatents:
    if cfg.latents == "fly":
        return EncodedLatents(inputs.joined.faces, encode, cfg.workers)
    cache = _cache(cfg, inputs)
    fill_cache(cache, encode, cfg.workers, processes)
    return CachedLatents(cache)


def _statistics(
    cfg: TrainLdmConfig, inputs: _Inputs, processes: Processes, latents: CachedLatents | EncodedLatents
) -> tuple[list[float] | None, list[float] | None]:
    if not _is_normalised(cfg, inputs.autoencoder):
        return None, None
    rows = evenly(inputs.joined.train_rows, STATISTICS_IMAGES)
    return latent_statistics(inputs.folder / "latent_statistics.json", latents, rows, processes)


def _is_normalised(cfg: TrainLdmConfig, autoencoder: nn.Module) -> bool:
    if cfg.latent_statistics == "auto":
        return autoencoder.section["name"] != "vq-f4"
    return cfg.latent_statistics == "measured"


def _settings(
    cfg: TrainLdmConfig, inputs: _Inputs, mean: list[float] | None, std: list[float] | None
) -> LdmSettings:
    contexts = inputs.joined.contexts
    return LdmSettings(
        denoiser=cfg.denoiser.model_dump(mode="json"),
        num_timesteps=cfg.num_timesteps, beta_schedule=cfg.beta_schedule,
        beta_start=cfg.beta_start, beta_end=cfg.beta_end,
        zero_terminal_snr=cfg.zero_terminal_snr, prediction=cfg.prediction,
        latent_channels=inputs.latent_shape[0], latent_size=inputs.latent_shape[1],
        latent_mean=mean, latent_std=std, image_size=cfg.image_size, output_size=cfg.output_size,
        autoencoder=inputs.autoencoder.section, embedder=inputs.embedder,
        embedding_size=512 if contexts is None else contexts.shape[1],
    )


def _channels(values: list[float] | None, default: float, device: torch.device) -> Tensor:
    return torch.tensor([default] if values is None else values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _batch_plan(cfg: TrainLdmConfig, inputs: _Inputs, processes: Processes) -> BatchPlan:
    conditional = is_conditional(inputs.denoiser)
    return BatchPlan(
        cfg.seed, cfg.batch_size, local_share(cfg.batch_size, processes.index, processes.count),
        inputs.joined.train_rows, cfg.flip, inputs.latent_shape, cfg.num_timesteps,
        cfg.context_dropout if conditional else 0.0,
        getattr(cfg.denoiser, "component_dropout", 0.0) if conditional else 0.0,
        getattr(cfg.denoiser, "context_width", 1),
    )


def _validation(
    cfg: TrainLdmConfig, inputs: _Inputs, processes: Processes, latents: CachedLatents | EncodedLatents,
    mean: Tensor, std: Tensor,
) -> Validation | None:
    held_out, contexts = inputs.joined.held_out_rows, inputs.joined.contexts
    if not held_out or not cfg.validate_every:
        return None
    batch_size = max(1, min(cfg.micro_batch or cfg.batch_size, math.ceil(len(held_out) / processes.count)))
    places = validation_places(len(held_out), batch_size, processes.index, processes.count)
    rows = [held_out[place] for place in places]
    own = (latents.read(rows) - mean.cpu()) / std.cpu() if rows else torch.zeros(0, *inputs.latent_shape)
    return Validation(
        own, None if contexts is None else contexts[rows], places, cfg.seed, inputs.schedule, batch_size,
        processes.device,
    )


def _previews(
    cfg: TrainLdmConfig, inputs: _Inputs, autoencoder: nn.Module, mean: Tensor, std: Tensor, device: torch.device
) -> Previews | None:
    if not cfg.preview_every:
        return None
    rows = evenly(inputs.joined.train_rows, cfg.preview_identities)
    faces, contexts = inputs.joined.faces, inputs.joined.contexts

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return torch.cat([autoencoder.decode(part * std + mean).float().cpu() for part in latents.split(8)])

    return Previews(
        torch.stack([torch.from_numpy(faces[row]) for row in rows]), None if contexts is None else contexts[rows],
        [faces.entries[row].key for row in rows], cfg.preview_samples, inputs.latent_shape, inputs.schedule,
        min(cfg.preview_steps, cfg.num_timesteps), decode, cfg.seed, device, DTYPES[cfg.precision],
    )
