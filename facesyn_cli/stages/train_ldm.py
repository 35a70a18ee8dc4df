"""Train a latent diffusion model on faces and their embeddings (`2-ldm`).

The loop is in the open in `_train`. Whatever is random is a function of (seed, step, place in the global
batch), so neither the number of processes nor accumulation changes what is learned, and a run that was
killed and started again ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Literal

import torch

from facesyn_cli import signals
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent, require_header
from facesyn_cli.artifacts.ldm_settings import LdmSettings
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
    batch_setting,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.console import log, progress
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.distributed import Processes, build_accelerator, check_device
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import LoadedBackbone, load_autoencoder
from facesyn_cli.training.data_order import local_share
from facesyn_cli.training.ema import Ema, EmaSettings
from facesyn_cli.training.horizon import check_horizon
from facesyn_cli.training.ldm_batches import Batch, BatchPlan, read_ahead, training_batches
from facesyn_cli.training.ldm_export import check_exportable, export_published
from facesyn_cli.training.ldm_inputs import (
    LdmInputs,
    build_denoiser,
    encoder,
    evenly,
    is_conditional,
    join_faces,
    latent_shape,
)
from facesyn_cli.training.ldm_judging import open_judge
from facesyn_cli.training.ldm_latents import (
    CachedLatents,
    ChannelScale,
    EncodedLatents,
    latent_statistics,
    open_latents,
)
from facesyn_cli.training.ldm_monitor import LdmMonitor
from facesyn_cli.training.ldm_state import GradientSettings, LdmState, take_step, wrapper_options
from facesyn_cli.training.lr import LrSettings, set_lr
from facesyn_cli.training.optimizer import OptimizerSettings, build_optimizer
from facesyn_cli.training.precision import Precision, check_precision, loss_scaler
from facesyn_cli.training.tracking import TrackingSettings

STATISTICS_IMAGES = 10_000


class TrainLdmConfig(StageConfig):
    """Settings of `facesyn train-ldm`. Where nothing else is said, the defaults are the published ones."""

    renamed = {"optimiser": "optimizer"}

    images: Path | None = input_path(None, "folder or zip of faces; None: 0-images of the run")
    embeddings: Path | None = input_path(None, "EmbeddingSet or published embeddings; None: 1-embeddings of the run")
    embedding_names: Path | None = input_path(
        None, "row-order list of a published array; None: image_names.* beside it"
    )
    autoencoder: str | None = input_path(
        None, "weights of the autoencoder: file, folder or hub id; None: 2-autoencoder"
    )
    autoencoder_model: PluginConfig | None = PluginSection("autoencoder", default=None)  # None: read off the weights
    denoiser: PluginConfig = PluginSection("denoiser", default="idiff-unet")

    image_size: int = affects_result(128, "side of the images the autoencoder sees, in pixels", ge=8)
    output_size: int = affects_result(112, "side of the images that `sample` will write, in pixels", ge=8)
    latent_statistics: Literal["auto", "measured", "identity"] = affects_result(
        "auto", "normalize latents by measured mean and std of each channel; auto: not for vq-f4, as published"
    )
    num_timesteps: int = affects_result(1000, "timesteps T of the noise schedule", ge=1)
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = affects_result(
        "linear", "shape of the noise schedule"
    )
    beta_start: float = affects_result(1e-4, "first beta at T = 1000", gt=0, lt=1)
    beta_end: float = affects_result(0.02, "last beta at T = 1000", gt=0, lt=1)
    zero_terminal_snr: bool = affects_result(
        False, "rescale the schedule to end in pure noise; needs prediction v or x0"
    )
    prediction: Literal["epsilon", "v", "x0"] = affects_result(
        "epsilon", "what the denoiser predicts; with few steps v learns more than epsilon, with very few x0 more than v"
    )
    min_snr_gamma: float | None = affects_result(
        None, "weigh the loss by min(SNR, gamma), 5 in the paper; None: no", gt=0
    )

    steps: int = growable(200_000, "optimizer steps", ge=1)
    batch_size: int = affects_result(64, "images a step, all processes together", ge=1)
    micro_batch: int | None = runtime_only(None, "most images a forward pass; None: a process's whole share", ge=1)
    optimizer: OptimizerSettings = affects_result(OptimizerSettings(), "which optimizer, and its base learning rate")
    lr_schedule: LrSettings = affects_result(
        LrSettings(name="cosine-warm-restarts"), "how the learning rate moves; only `cosine` depends on `steps`"
    )
    ema: EmaSettings = affects_result(EmaSettings(), "average of the weights; it is what is written in the end")
    precision: Precision = affects_result("fp32", "fp32, bf16 or fp16 (CUDA only); weights stay float32")
    flip: float = affects_result(0.5, "probability of training on the mirror image", ge=0, le=1)
    context_dropout: float = affects_result(
        0.0, "probability of training an image under the empty context, for guidance", ge=0, le=1
    )
    validation_fraction: float = affects_result(
        0.01, "share of the images held out for the validation loss", ge=0, lt=1
    )

    latents: Literal["cache", "fly"] = batch_setting("cache", "cache: encode all once, to disk; fly: at every step")
    latent_cache: Path | None = runtime_only(None, "folder of the cache, may be shared by runs; None: latents/ in out")
    validation_images: int = runtime_only(1024, "at most so many held-out images are looked at", ge=1)
    validate_every: int = runtime_only(1000, "steps between validations; 0: never", ge=0)
    preview_every: int = runtime_only(2000, "steps between preview grids; 0: never", ge=0)
    preview_identities: int = runtime_only(6, "rows of a preview grid", ge=1)
    preview_samples: int = runtime_only(4, "samples a row", ge=1)
    preview_steps: int = runtime_only(25, "DDIM steps of a preview", ge=1)
    judge: Path | None = runtime_only(None, "weights of a recognizer that judges whom previews show; None: nobody does")
    judge_every: int = runtime_only(2000, "steps between two judgements; 0: never", ge=0)
    judge_identities: int = runtime_only(16, "people whose previews are judged, by held-out photos first", ge=2)
    judge_images: int = runtime_only(4, "previews of each of them", ge=2)
    judge_steps: int = runtime_only(10, "DDIM steps of a judged preview", ge=1)
    log_every: int = runtime_only(50, "steps between lines of metrics.jsonl", ge=1)
    checkpoint_every: int = runtime_only(1000, "steps between checkpoints", ge=1)
    keep_checkpoints: int = runtime_only(2, "checkpoints that stay; 1: none to fall back on", ge=1)
    save_steps: tuple[int, ...] = runtime_only((), "steps whose averaged weights are kept in weights/; a stop adds one")
    export_published: bool = runtime_only(False, "also write ema_averaged_model_<step>.ckpt for the published code")
    compile: bool = runtime_only(False, "torch.compile the denoiser (CUDA only): slow to start, then faster")
    workers: int = runtime_only(0, "processes that decode images, per training process; 0: none of their own", ge=0)
    tracking: TrackingSettings = runtime_only(TrackingSettings(), "who else gets the figures of the training")


def plan(cfg: TrainLdmConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do, after the same checks."""
    inputs, judge = _open_inputs(cfg, work)
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
        "network evaluations for judged previews": _num_judged(cfg) if judge else 0,
        "latent cache": f"{cache.num_bytes / 2**20:.1f} MiB" if cache else "none",
        "disk for checkpoints": f"{(cfg.keep_checkpoints + 1) * 16 * num_values / 2**20:.0f} MiB",
        "memory for weights, gradients, averages": f"{20 * num_values / 2**20:.0f} MiB",
        "folder": f"{inputs.folder} ({state})",
    }


def run(cfg: TrainLdmConfig, work: Work) -> Outcome:
    """Train, or go on training, and write the averaged weights."""
    inputs, judge = _open_inputs(cfg, work)
    processes = Processes(build_accelerator(cfg.device, **wrapper_options()))
    processes.announce()
    check_precision(cfg.precision, processes.device.type)
    if cfg.compile and processes.device.type != "cuda":
        raise UserError(f"compile=true needs a CUDA device, this run is on {processes.device.type}")
    if processes.world_size > cfg.batch_size:
        raise UserError(f"batch_size {cfg.batch_size} cannot be shared by {processes.world_size} processes")
    with open_shared_output(processes, inputs.folder, "Weights", "train-ldm", cfg, inputs.parents) as out:
        if not out.finished:
            _log_counts(cfg, inputs)
            extra = _train(cfg, inputs, processes, out, judge)
            if processes.is_first:
                counts = {"steps": cfg.steps, "images": len(inputs.joined.train_rows)}
                out.finish(counts, extra, file_digest(out.folder / "model.safetensors"))
            processes.barrier()
        if not processes.is_first:
            return Outcome(out.folder, {})
        return Outcome(out.folder, {**out.header.counts, **out.header.extra})


def _train(
    cfg: TrainLdmConfig, inputs: LdmInputs, processes: Processes, out: Output, judge: LoadedBackbone | None
) -> dict[str, Any]:
    device, folder = processes.device, out.folder
    autoencoder = inputs.autoencoder.to(device)
    encode = encoder(autoencoder, device)
    latents = open_latents(_cache(cfg, inputs), inputs.joined.faces, encode, cfg.workers, processes)
    settings = _settings(cfg, inputs, *_statistics(cfg, inputs, processes, latents))
    scale = ChannelScale.of(settings.latent_mean, settings.latent_std, device)

    denoiser = inputs.denoiser.to(device).train()
    state = LdmState(
        denoiser, Ema(denoiser, cfg.ema), build_optimizer(denoiser.parameters(), cfg.optimizer),
        loss_scaler(cfg.precision, device), torch.zeros(2, dtype=torch.float64, device=device),
    )
    state.restore(folder / "checkpoints", processes)
    if cfg.compile:
        denoiser.compile()
    model = processes.accelerator.prepare_model(denoiser)
    gradient = GradientSettings(
        cfg.batch_size, processes.world_size, cfg.micro_batch, cfg.precision, cfg.optimizer.clip,
        cfg.min_snr_gamma,
    )

    batch_plan = _batch_plan(cfg, inputs, processes)
    steps = range(state.step, cfg.steps)
    stream = latents.stream(batch_plan.rows(step) for step in steps)
    batches = training_batches(batch_plan, stream, inputs.joined.contexts, steps)
    batches = read_ahead(batches) if cfg.latents == "cache" else batches  # worker processes read ahead themselves
    embed = FaceEmbedder.of(judge, device).embed if judge else None
    watch = LdmMonitor(cfg, inputs, processes, latents, scale, state.step, embed)

    with watch, progress("train-ldm", cfg.steps, "steps", state.step) as bar:
        for batch in batches:
            lr = cfg.optimizer.lr * cfg.lr_schedule.factor(state.step, cfg.steps)
            set_lr(state.optimizer, lr)
            batch = Batch(
                scale.normalize(batch.latents.to(device)),
                None if batch.contexts is None else batch.contexts.to(device),
                batch.draws.to(device),
            )
            norm = take_step(state, model, batch, inputs.schedule, gradient)
            step, is_last = state.step, state.step == cfg.steps
            is_stopping = processes.any(signals.received() is not None)
            watch.look(state, lr, norm, is_last)
            bar.advance(1, lr=lr, **watch.figures)
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
    return {"denoiser": cfg.denoiser.name, **watch.figures}


def _write_weights(folder: Path, state: LdmState, settings: LdmSettings) -> None:
    write_weights(folder, state.ema.state_dict(), settings.model_dump(mode="json"))


def _num_judged(cfg: TrainLdmConfig) -> int:
    times = cfg.steps // cfg.judge_every + (cfg.steps % cfg.judge_every > 0)
    return times * cfg.judge_identities * cfg.judge_images * min(cfg.judge_steps, cfg.num_timesteps)


def _open_inputs(cfg: TrainLdmConfig, work: Work) -> tuple[LdmInputs, LoadedBackbone | None]:
    cfg.tracking.check()
    if cfg.device != "auto":
        check_device(cfg.device)
    folder = cfg.out or work.folder("ldm")
    check_horizon(folder, cfg.steps, cfg.lr_schedule.name)
    if cfg.output_size > cfg.image_size:
        log.warning(f"output_size {cfg.output_size} is larger than image_size {cfg.image_size}: images will be blurred")
    images_path = cfg.images or work.folder("images")
    if cfg.images is None and not images_path.exists():
        raise UserError(f"train-ldm needs faces: {images_path} does not exist; give --images a folder or zip")
    path = _absolute(cfg.autoencoder)
    if path is None and cfg.autoencoder_model is None:
        path = _trained_autoencoder(work)
    has_judge = cfg.judge is not None and cfg.judge_every > 0
    part = "both" if cfg.preview_every or has_judge else "encoder"
    autoencoder = load_autoencoder(path, cfg.autoencoder_model, part)
    if cfg.export_published:
        check_exportable(cfg.denoiser, cfg.beta_schedule, cfg.prediction, _is_normalized(cfg, autoencoder))
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
    embedder = embeddings.embedder if embeddings else None
    judge = open_judge(cfg.judge, embedder, is_conditional(denoiser)) if has_judge else None
    inputs = LdmInputs(
        folder, joined, autoencoder, shape, denoiser, schedule, embedder, parents, len(images.entries)
    )
    return inputs, judge


def _trained_autoencoder(work: Work) -> str:
    """Return the folder that `train-autoencoder` has written in this run."""
    folder = work.folder("autoencoder")
    if not folder.exists():
        raise UserError(
            "train-ldm needs an autoencoder: give --autoencoder FILE, folder or hub id, or run train-autoencoder first"
        )
    require_header(folder, "Weights")
    return str(folder.resolve())


def _absolute(path: str | None) -> str | None:
    """A local path is remembered in full, so that `sample` finds it from anywhere; a hub id stays as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _log_counts(cfg: TrainLdmConfig, inputs: LdmInputs) -> None:
    joined, faces = inputs.joined, inputs.joined.faces
    without = inputs.num_images - len(faces)
    log.info(
        f"train-ldm: {len(joined.train_rows)} images to train on, {len(joined.held_out_rows)} for validation"
        + (f"; {without} of {inputs.num_images} have no embedding and are left out" if without else "")
        + f"; {sum(p.numel() for p in inputs.denoiser.parameters())} parameters, "
        f"{cfg.steps * cfg.batch_size / len(joined.train_rows):.3g} epochs"
    )


def _cache(cfg: TrainLdmConfig, inputs: LdmInputs) -> LatentCache | None:
    if cfg.latents == "fly":
        return None
    place = cfg.latent_cache or inputs.folder / "latents"
    digest = inputs.parents["autoencoder"].digest
    return LatentCache(place, inputs.joined.faces, digest, inputs.latent_shape, has_mirror=cfg.flip > 0)


def _statistics(
    cfg: TrainLdmConfig, inputs: LdmInputs, processes: Processes, latents: CachedLatents | EncodedLatents
) -> tuple[list[float] | None, list[float] | None]:
    if not _is_normalized(cfg, inputs.autoencoder):
        return None, None
    rows = evenly(inputs.joined.train_rows, STATISTICS_IMAGES)
    return latent_statistics(inputs.folder / "latent_statistics.json", latents, rows, processes)


def _is_normalized(cfg: TrainLdmConfig, autoencoder: torch.nn.Module) -> bool:
    if cfg.latent_statistics == "auto":
        return autoencoder.section["name"] != "vq-f4"
    return cfg.latent_statistics == "measured"


def _settings(
    cfg: TrainLdmConfig, inputs: LdmInputs, mean: list[float] | None, std: list[float] | None
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


def _batch_plan(cfg: TrainLdmConfig, inputs: LdmInputs, processes: Processes) -> BatchPlan:
    conditional = is_conditional(inputs.denoiser)
    return BatchPlan(
        cfg.seed, cfg.batch_size, local_share(cfg.batch_size, processes.rank, processes.world_size),
        inputs.joined.train_rows, cfg.flip, inputs.latent_shape, cfg.num_timesteps,
        cfg.context_dropout if conditional else 0.0,
        getattr(cfg.denoiser, "component_dropout", 0.0) if conditional else 0.0,
        getattr(cfg.denoiser, "context_width", 1),
    )
