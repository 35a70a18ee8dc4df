"""`facesyn sample`: contexts -> images of new identities, `<identity>/<sample>.png`.

The images of all identities, in order, are cut into fixed batches; the last one is filled up. A batch is
skipped when all its images lie on disk, otherwise computed as a whole and only what is missing written. So
which images share a batch, and with it every bit of them, does not depend on kills, on the number of
processes or on their order; noise belongs to the image (`diffusion/noise.py`).
"""

from __future__ import annotations

import datetime
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from torch import Tensor, nn

from facesyn_cli import signals
from facesyn_cli.artifacts.contexts import ContextSet
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.ldm import LdmSettings
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import BEGUN, HEADER, Output, Parent, check_output, require_header
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
from facesyn_cli.console import is_first_process, log, progress
from facesyn_cli.data.image_writer import ImageWriter
from facesyn_cli.data.pixels import encode_jpeg, encode_png, resize_pixels, to_u8
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.diffusion.noise import image_noise, open_noise_file, step_noise
from facesyn_cli.diffusion.sampling import count_evaluations, sample_latents
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.diffusion.schedulers import Scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm, load_autoencoder, load_denoiser, open_autoencoder
from facesyn_cli.plugins import registry
from facesyn_cli.training.processes import Processes, check_device, processes

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BYTES_PER_PIXEL = {"png": 1.8, "jpeg": 0.5}  # of a face, measured; jpeg at quality 95
_MAX_WAITING = 256                            # images waiting to be written


class NoiseSection(BaseModel):
    """Where the starting noise comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = source(None, ".npy of shape ids x per_id x C x H x W; None: drawn per image from the seed")


class SampleConfig(StageConfig):
    """Settings of `facesyn sample`."""

    ldm: Path | None = source(None, "folder written by train-ldm, or a published checkpoint; None: 2-ldm")
    autoencoder: Path | None = source(
        None, "autoencoder weights, the decoder half suffices; None: the one the LDM was trained with"
    )
    contexts: Path | None = source(None, "folder written by gen-contexts, or a published .npy; None: 3-contexts")
    ids: int | None = growing(None, "how many identities, the first of the contexts; None: all", ge=1)
    per_id: int = growing(50, "images of each identity", ge=1)
    batch_size: int | None = recorded(None, "images a batch; None: 64 on a GPU, 8 on a CPU", ge=1)
    scheduler: PluginConfig = PluginSection("scheduler", default="ddim")
    guidance: PluginConfig = PluginSection("guidance", default="none")
    precision: Literal["fp32", "bf16", "fp16"] = identity("fp32", "number format of the denoiser")
    noise: NoiseSection = identity(NoiseSection(), "where the starting noise comes from")
    size: int | None = identity(None, "side of the images in pixels; None: the LDM's, 112 as published", ge=1)
    format: Literal["png", "jpeg"] = identity("png", "format of the images")
    jpeg_quality: int | None = identity(None, "quality of format jpeg; None: 95", ge=1, le=100)
    assume_embedder: str | None = runtime(
        None, "name or digest of the recogniser behind a published file that does not say: no warning then"
    )
    shard: str | None = runtime(None, "i/n, i from 1: make part i of n; the run that finds all parts finishes")
    workers: int | None = runtime(None, "batches computed at once on a CPU, a core each; None: all cores", ge=1)
    writers: int = runtime(4, "threads that encode and write images, per process", ge=1)

    @field_validator("shard")
    @classmethod
    def _is_part(cls, value: str | None) -> str | None:
        if value is not None:
            index, slash, count = value.partition("/")
            if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
                raise ValueError("i/n with 1 <= i <= n is expected, for example 2/8")
        return value

    @model_validator(mode="after")
    def _quality_needs_jpeg(self) -> SampleConfig:
        if self.jpeg_quality is not None and self.format != "jpeg":
            raise ValueError(f"jpeg_quality belongs to format jpeg, the format is {self.format}")
        return self

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) of `shard`."""
        return tuple(map(int, self.shard.split("/"))) if self.shard else None


def plan(cfg: SampleConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: images, network evaluations, disk."""
    device = torch.device(
        check_device(cfg.device) if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    inputs = _Inputs(cfg, work)
    state = check_output(inputs.folder, "ImageSet", inputs.cfg, inputs.parents)
    done = inputs.images_on_disk()
    batch_size = inputs.batch_size(device.type)
    todo = [] if state == "finished" else inputs.unfinished_batches(batch_size, done)
    missing = sum(i not in done for batch in todo for i in batch)
    evaluations = count_evaluations(inputs.make_scheduler(), inputs.guidance)
    image_bytes = _BYTES_PER_PIXEL[cfg.format] * inputs.size**2
    at = next(p for p in (inputs.folder, *inputs.folder.absolute().parents) if p.exists())
    return {
        "identities": len(inputs.identities),
        "images": inputs.num_images,
        "images done": len(done),
        "images left": missing,
        "batches left": f"{len(todo)} of {batch_size} images",
        "network evaluations per image": evaluations,
        "network evaluations": evaluations * len(todo) * batch_size,
        **({"expected time": _expected_time(inputs, device, batch_size, evaluations, len(todo))} if todo else {}),
        "disk": f"{missing * image_bytes / 2**20:.1f} MiB",
        "disk free": f"{shutil.disk_usage(at).free / 2**20:.0f} MiB",
        "folder": f"{inputs.folder} ({state})",
    }


def _expected_time(
    inputs: _Inputs, device: torch.device, batch_size: int, evaluations: int, num_batches: int
) -> str:
    """Measure one evaluation and one decoding of a batch, and say how long all of them take one process here."""
    sampler, workers = _Sampler(inputs, device, batch_size), _num_workers(inputs.cfg, device, 1)
    with _one_core_each(1, device) as pool:
        if device.type == "cuda":
            pool.submit(sampler.measure).result()  # the first batch pays for loading kernels
        evaluation, decoding = pool.submit(sampler.measure).result()
    rounds = math.ceil(num_batches / workers)
    seconds = rounds * (evaluations * evaluation + decoding)
    at_once = min(batch_size * workers, inputs.num_images)
    return f"{datetime.timedelta(seconds=round(seconds))} ({at_once} images at once)"


def run(cfg: SampleConfig, work: Work) -> Outcome:
    """Sample all images; see the module docstring."""
    group = processes(cfg.device)
    inputs = _Inputs(cfg, work)
    made = 0
    with group.open_output(inputs.folder, "ImageSet", "sample", inputs.cfg, inputs.parents, cfg.part) as output:
        made = 0
        if not output.finished:
            made = 0 if output.part_finished() else _sample(inputs, group)
            made = int(group.sum(torch.tensor([made], device=group.device)).item())  # waits for all
            if group.is_first:
                _finish(inputs, output, inputs.batch_size(group.device.type))
            group.barrier()
        header = output.header
    counts = header.counts if header else {"part": cfg.shard}
    return Outcome(inputs.folder, {**counts, "made_now": made})


class _Inputs:
    """Everything a run reads, checked against each other."""

    def __init__(self, cfg: SampleConfig, work: Work) -> None:
        contexts = ContextSet.open(_existing(cfg.contexts, work, "contexts", "gen-contexts"))
        self.identities = _chosen(contexts, cfg.ids)
        # "All" becomes a number, so that contexts that have grown since make this folder grow as well.
        self.cfg = cfg = cfg.model_copy(update={"ids": len(self.identities)})
        self.folder = cfg.out or work.folder("samples")
        self.vectors = torch.from_numpy(np.asarray(contexts.vectors[: len(self.identities)], dtype=np.float32))
        ldm_path = _existing(cfg.ldm, work, "ldm", "train-ldm")
        self.ldm = _load_ldm(ldm_path)
        settings = self.ldm.config
        if self.vectors.shape[1] != settings.embedding_size:
            raise UserError(
                f"{contexts.path} holds contexts of {self.vectors.shape[1]} numbers, but {ldm_path} takes"
                f" {settings.embedding_size}"
            )
        self.embedder = _agreed_embedder(cfg, settings, ldm_path, contexts)
        self.autoencoder = _load_decoder(cfg.autoencoder, settings, ldm_path)
        self.size = cfg.size or settings.output_size
        self.latent_shape = (settings.latent_channels, settings.latent_size, settings.latent_size)
        self.noise = open_noise_file(cfg.noise.file, len(self.identities), cfg.per_id, self.latent_shape)
        self.schedule = ldm_schedule(settings)
        self._make_scheduler = registry.build("scheduler", cfg.scheduler)
        self.make_scheduler()  # refuses a number of steps that does not fit
        self.guidance = registry.build("guidance", cfg.guidance)
        section = self.autoencoder.section
        self.parents = {
            "ldm": Parent(str(ldm_path), _ldm_digest(self.ldm)),
            "contexts": contexts.parent(),
            "autoencoder": Parent(
                str(section["path"] or section["name"]), json_digest([section["settings"], section["digest"]])
            ),
        }
        if cfg.noise.file:
            self.parents["noise"] = Parent(str(cfg.noise.file), file_digest(cfg.noise.file))

    @property
    def num_images(self) -> int:
        return len(self.identities) * self.cfg.per_id

    @property
    def suffix(self) -> str:
        """Suffix of the image files."""
        return {"png": ".png", "jpeg": ".jpg"}[self.cfg.format]

    def make_scheduler(self) -> Scheduler:
        """Return a fresh scheduler for one batch."""
        return self._make_scheduler(self.schedule)

    def path(self, index: int) -> Path:
        """Return where image number `index` of the set lies."""
        row, sample = divmod(index, self.cfg.per_id)
        return self.folder / self.identities[row] / f"{sample}{self.suffix}"

    def batch_size(self, device: str) -> int:
        """Images the network sees at once; a set smaller than a batch is one batch."""
        wanted = self.cfg.batch_size or (8 if torch.device(device).type == "cpu" else 64)
        return min(wanted, self.num_images)

    def unfinished_batches(self, batch_size: int, done: set[int]) -> list[range]:
        """Return the batches of this part of the run that have an image to make."""
        index, count = self.cfg.part or (1, 1)
        batches = share(fixed_batches(self.num_images, batch_size), index - 1, count)
        return [batch for batch in batches if not done.issuperset(batch)]

    def images_on_disk(self) -> set[int]:
        """Return the numbers of all images that lie finished in the folder."""
        done = set()
        for row, name in enumerate(self.identities):
            try:
                with os.scandir(self.folder / name) as found:
                    files = {item.name for item in found if item.stat().st_size}
            except (FileNotFoundError, NotADirectoryError):
                continue
            first = row * self.cfg.per_id
            done.update(first + k for k in range(self.cfg.per_id) if f"{k}{self.suffix}" in files)
        return done


def _sample(inputs: _Inputs, group: Processes) -> int:
    """Make this process's share of what is missing; return how many images it wrote."""
    cfg = inputs.cfg
    done = inputs.images_on_disk()
    batch_size = inputs.batch_size(group.device.type)
    todo = inputs.unfinished_batches(batch_size, done)
    group.barrier()  # every process has looked before any of them writes, so all see the same list
    mine = share(todo, group.index, group.count)
    missing = sum(i not in done for batch in mine for i in batch)
    if not mine:
        return 0
    sampler = _Sampler(inputs, group.device, batch_size)
    encode = encode_png if cfg.format == "png" else partial(encode_jpeg, quality=cfg.jpeg_quality or 95)
    before = len(done) if cfg.part is None and group.count == 1 else 0

    def make(batch: range) -> None:
        signals.check()
        images = sampler.start(batch)
        for row, index in enumerate(batch):
            if index not in done:
                writer.put(inputs.path(index), partial(images, row))

    with progress("sample", before + missing, done=before) as bar:
        with (
            ImageWriter(encode, cfg.writers, max(2 * batch_size, _MAX_WAITING)) as writer,
            _one_core_each(_num_workers(cfg, group.device, group.count), group.device) as pool,
        ):
            for made in as_completed([pool.submit(make, batch) for batch in mine]):
                made.result()
                bar.advance(before + writer.written - bar.done)
        bar.advance(before + writer.written - bar.done)  # written after the last batch
    return missing


@contextmanager
def _one_core_each(num_workers: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads in which every torch operation keeps to one core.

    Sums are split over cores, so the same batch on another number of cores has other last bits. With one
    core a batch, and several batches at once, images do not depend on cores, processes or environment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    is_numbered_gpu = device.type == "cuda" and device.index is not None
    choose_device = partial(torch.cuda.set_device, device) if is_numbered_gpu else None  # a setting of each thread
    pool = ThreadPoolExecutor(num_workers, "sampler", initializer=choose_device)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _num_workers(cfg: SampleConfig, device: torch.device, num_processes: int) -> int:
    """Batches to compute at once: one on a GPU, on a CPU as many as this process has cores for."""
    if device.type != "cpu":
        return 1
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return cfg.workers or max(1, num_cores // neighbours)


class _Sampler:
    """Turns batches of image numbers into pixels on one device."""

    def __init__(self, inputs: _Inputs, device: torch.device, batch_size: int) -> None:
        settings = inputs.ldm.config
        self._inputs, self._device, self._batch_size = inputs, device, batch_size
        self._denoiser = inputs.ldm.module.to(device)
        self._autoencoder = inputs.autoencoder.to(device)
        self._mean = torch.tensor(settings.latent_mean or [0.0], device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(settings.latent_std or [1.0], device=device).view(1, -1, 1, 1)

    def start(self, batch: range) -> Callable[[int], np.ndarray]:
        """Compute a batch; on a GPU only queue it.

        Returns:
            A function from a row of the batch to its (S, S, 3) uint8 pixels, for the writer's threads; it
            waits for the device, and raises UserError where the network's numbers are not finite.
        """
        inputs, cfg = self._inputs, self._inputs.cfg
        images = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]  # the last batch is filled up
        places = [divmod(i, cfg.per_id) for i in images]
        latents = sample_latents(
            self._denoiser,
            inputs.make_scheduler(),
            inputs.guidance,
            self._send(inputs.vectors[[row for row, _ in places]]),
            self._send(torch.stack([self._noise(row, sample) for row, sample in places])),
            draw_noise=lambda step: self._send(
                torch.stack([
                    step_noise(cfg.seed, inputs.identities[row], sample, step, inputs.latent_shape)
                    for row, sample in places
                ])
            ),
            dtype=_DTYPES[cfg.precision],
            on_step=signals.check,
        )
        with torch.inference_mode():
            pixels = self._autoencoder.decode(latents * self._std + self._mean)
            is_finite = pixels.isfinite().flatten(1).all(dim=1)
            pixels_u8 = finish_pixels(pixels.nan_to_num(), inputs.size)
        return self._fetch(pixels_u8, is_finite, images)

    def measure(self) -> tuple[float, float]:
        """Return the seconds of one network evaluation and of decoding one batch."""
        inputs = self._inputs
        latents = torch.zeros(self._batch_size, *inputs.latent_shape, device=self._device)
        context = self._send(inputs.vectors[:1].expand(self._batch_size, -1).contiguous())
        t = torch.zeros(self._batch_size, dtype=torch.long, device=self._device)
        dtype = _DTYPES[inputs.cfg.precision]
        times = [time.perf_counter()]
        with torch.inference_mode():
            with torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32):
                self._denoiser(latents, t, context).sum().item()  # .item() waits for the device
            times.append(time.perf_counter())
            self._autoencoder.decode(latents).sum().item()
        times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def _noise(self, row: int, sample: int) -> Tensor:
        inputs = self._inputs
        if inputs.noise is None:
            return image_noise(inputs.cfg.seed, inputs.identities[row], sample, inputs.latent_shape)
        return torch.from_numpy(np.array(inputs.noise[row, sample], dtype=np.float32))

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)  # does not wait for earlier batches

    def _fetch(self, pixels_u8: Tensor, is_finite: Tensor, images: list[int]) -> Callable[[int], np.ndarray]:
        wait = None
        if self._device.type == "cuda":
            pixels_u8, is_finite = (
                torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
                for x in (pixels_u8, is_finite)
            )
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
            wait = ready.synchronize
        else:
            pixels_u8, is_finite = pixels_u8.cpu(), is_finite.cpu()

        def get(row: int) -> np.ndarray:
            if wait is not None:
                wait()
            if not is_finite[row]:
                raise UserError(
                    f"the network gave numbers that are not finite for {self._inputs.path(images[row])}"
                    f" (precision {self._inputs.cfg.precision}); try precision fp32 or a smaller guidance.scale"
                )
            return pixels_u8[row].numpy()

        return get


def finish_pixels(pixels: Tensor, size: int) -> Tensor:
    """Return finished images (B, size, size, 3) uint8 from decoded pixels (B, 3, H, W), as published.

    Clamp to [-1, 1], then resize bilinearly without antialiasing, then round to 8 bits.
    """
    return to_u8(resize_pixels(pixels.float().clamp(-1, 1), size, antialias=False))


def _finish(inputs: _Inputs, output: Output, batch_size: int) -> None:
    """Make sure that every image lies on disk, then write the header (or the part's file)."""
    index, count = inputs.cfg.part or (1, 1)
    done = inputs.images_on_disk()
    wanted = [i for batch in inputs.unfinished_batches(batch_size, done) for i in batch]
    others = [k for k in range(1, count + 1) if k != index]
    if all((inputs.folder / f"shard-{k}-of-{count}.json").is_file() for k in others):
        wanted = range(inputs.num_images)  # parts made with different batch sizes would leave gaps
    gone = [i for i in wanted if i not in done]
    if gone:
        again = "the same command again" if count == 1 else "the command once more without --shard"
        raise UserError(f"{len(gone)} images are missing, first {inputs.path(gone[0])}; run {again}")
    counts = {"images": inputs.num_images, "identities": len(inputs.identities), "per_id": inputs.cfg.per_id}
    extra = {
        "embedder": inputs.embedder,
        "size": inputs.size,
        "network_evaluations_per_image": count_evaluations(inputs.make_scheduler(), inputs.guidance),
    }
    output.finish(counts, extra=extra)


def _existing(path: Path | None, work: Work, name: str, made_by: str) -> Path:
    path = path or work.folder(name)
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with `facesyn {made_by}`, or name one with --{name}")
    return path


def _chosen(contexts: ContextSet, ids: int | None) -> list[str]:
    """Return the names of the identities to sample; they become folders."""
    have = len(contexts.identities)
    if ids is not None and ids > have:
        raise UserError(f"ids is {ids}, but {contexts.path} holds {have} contexts")
    chosen = contexts.identities[:ids]
    for name in chosen:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or any(part.startswith(".") for part in path.parts) or "\0" in name:
            raise UserError(f"{contexts.path}: identity {name!r} cannot be a folder name")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"{contexts.path} names {len(chosen) - len(set(chosen))} identities twice")
    return chosen


def _load_ldm(path: Path) -> LoadedLdm:
    if path.is_dir() and ((path / HEADER).exists() or (path / BEGUN).exists()):
        require_header(path, "Weights")
    ldm = load_denoiser(path)
    if not getattr(ldm.module, "is_conditional", True):
        raise UserError(f"{path} is an unconditional LDM: it takes no contexts, so its images have no identity")
    return ldm


def _ldm_digest(ldm: LoadedLdm) -> str:
    settings = ldm.config.model_dump(mode="json", exclude={"autoencoder", "embedder"})
    return json_digest([ldm.digest, settings])


def _load_decoder(path: Path | None, settings: LdmSettings, ldm_path: Path) -> nn.Module:
    """Load the decoder: the one recorded with the LDM, from `path` where it is given."""
    section = settings.autoencoder
    if section is None and path is None:
        raise UserError(f"{ldm_path} does not say which autoencoder it was trained with; name it with --autoencoder")
    if section is None:
        module = load_autoencoder(path, part="decoder")
    elif path is None:
        module = open_autoencoder(section, part="decoder")
    else:
        module = open_autoencoder({**section, "path": str(path), "digest": None}, part="decoder")
    if module.latent_channels != settings.latent_channels:
        raise UserError(
            f"autoencoder {path or section['path']} has latents of {module.latent_channels} channels, but {ldm_path}"
            f" makes {settings.latent_channels}"
        )
    return module


def _agreed_embedder(cfg: SampleConfig, settings: LdmSettings, ldm_path: Path, contexts: ContextSet) -> str | None:
    """Return the recogniser behind LDM and contexts; embeddings of different ones must not mix."""
    assumed = cfg.assume_embedder
    of_ldm, of_contexts = settings.embedder or assumed, contexts.embedder or assumed
    known = [e for e in (settings.embedder, contexts.embedder) if e is not None]
    is_digest = assumed is not None and assumed.startswith("sha256:")
    if of_ldm and of_contexts and of_ldm != of_contexts and (len(known) == 2 or is_digest):
        raise UserError(
            f"{ldm_path} was conditioned on recogniser {of_ldm[:19]}, but {contexts.path} comes from"
            f" {of_contexts[:19]}; make the contexts with the LDM's recogniser"
        )
    silent = [str(ldm_path)] * (settings.embedder is None)
    silent += [str(contexts.path)] * (contexts.embedder is None and contexts.path.is_file())
    if silent and assumed is None and is_first_process():
        log.warning(
            f"{' and '.join(silent)} do not say which recogniser they belong to; LDM and contexts must come from the"
            " same one (--assume-embedder NAME says which, and silences this)"
        )
    return known[0] if known else assumed
