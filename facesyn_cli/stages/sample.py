"""`facesyn sample`: contexts -> images of new identities, `<identity>/<sample>.png`.

The images of all identities, in order, are cut into fixed batches; the last one is filled up. A batch is
skipped when all its images lie on disk, otherwise computed as a whole and only what is missing written. So
which images share a batch, and with it every bit of them, does not depend on kills, on the number of
processes or on their order; noise belongs to the image (`diffusion/noise.py`). Where a filter has images drawn
again, the same holds for blocks of whole identities (`sampling/rejection_sampling.py`).
"""

from __future__ import annotations

import datetime
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import HEADER, Parent
from facesyn_cli.artifacts.lock import remove_abandoned
from facesyn_cli.artifacts.names import check_file_names
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.preview_pictures import SHEET, move_pictures_out, picture_path, strip_name
from facesyn_cli.artifacts.record_set_images import open_images
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
from facesyn_cli.console import log
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.data.pixels import encode_jpeg, encode_png
from facesyn_cli.data.sharding import share
from facesyn_cli.diffusion.denoising_loop import count_evaluations
from facesyn_cli.diffusion.noise import open_noise_file
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.diffusion.schedulers import Scheduler
from facesyn_cli.distributed import Processes, check_device, processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.judge import Judge
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.report.contact_sheet import write_contact_sheet
from facesyn_cli.report.pack_card import write_pack_card
from facesyn_cli.sampling.conditions import Conditions
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.fast_networks import FastAutoencoder, FastDenoiser, InferenceOptions
from facesyn_cli.sampling.identity_methods import open_negatives, open_variation
from facesyn_cli.sampling.image_contexts import FOLDER as IMAGE_CONTEXTS
from facesyn_cli.sampling.image_contexts import write_image_contexts
from facesyn_cli.sampling.inputs import open_inputs
from facesyn_cli.sampling.layout import (
    ImageFolder,
    TarShards,
    neighboring_share,
    unfinished_batches,
    unfinished_shards,
)
from facesyn_cli.sampling.memory import fitting_batch
from facesyn_cli.sampling.rejection_sampling import RejectionSampling
from facesyn_cli.sampling.shard_writing import write_shards
from facesyn_cli.sampling.strip import Strip
from facesyn_cli.sampling.workers import num_workers, one_core_each
from facesyn_cli.sampling.writing import write_batches

_SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
_IMAGES_PER_SHARD = 10_000
_FEW = 400  # images, of which a contact sheet is made unasked
_BYTES_PER_PIXEL = {"png": 1.8, "jpeg": 0.5}  # of a face, measured; jpeg at quality 95


class NoiseSection(BaseModel):
    """Where the starting noise comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = input_path(None, ".npy of shape ids x per_id x C x H x W; None: drawn per image from the seed")


class SampleConfig(StageConfig):
    """Settings of `facesyn sample`."""

    ldm: Path | None = input_path(None, "folder written by train-ldm, or a published checkpoint; None: 2-ldm")
    autoencoder: Path | None = input_path(
        None, "autoencoder weights, the decoder half suffices; None: 2-decoder, or what the LDM was trained with"
    )
    contexts: Path | None = input_path(None, "folder written by gen-contexts, or a published .npy; None: 3-contexts")
    ids: int | None = growable(None, "how many identities, the first of the contexts; None: all", ge=1)
    per_id: int = growable(50, "images of each identity", ge=1)
    batch_size: int | Literal["auto"] | None = batch_setting(
        None, "images a batch; auto: what fits into memory; None: 64 on a GPU, 8 on a CPU"
    )
    scheduler: PluginConfig = PluginSection("scheduler", default="unipc")
    guidance: PluginConfig = PluginSection("guidance", default="none")
    variation: PluginConfig | None = PluginSection("context_variation", default=None)  # None: one context an identity
    filter: PluginConfig | None = PluginSection("sample_filter", default=None)  # None: no image is drawn again
    precision: Literal["fp32", "bf16", "fp16"] = affects_result("fp32", "number format of the denoiser")
    decoder_precision: Literal["fp32", "bf16", "fp16"] | None = affects_result(
        None, "number format of the decoder; None: fp32. The codebook is always looked up in fp32"
    )
    compile: bool = batch_setting(False, "fuse kernels, CUDA only; a minute or two at the start")
    cuda_graphs: bool = batch_setting(
        False, "record the launches of an evaluation and replay them; pays at small batches"
    )
    fused_qkv: bool = batch_setting(False, "one matrix product for queries, keys and values; see `bench sample`")
    joint_guidance: bool | None = batch_setting(
        None, "guided steps evaluate both contexts in one pass of twice the batch; None: on a CPU"
    )
    noise: NoiseSection = affects_result(NoiseSection(), "where the starting noise comes from")
    size: int | None = affects_result(None, "side of the images in pixels; None: the LDM's, 112 as published", ge=1)
    format: Literal["png", "jpeg"] = affects_result("png", "format of the images")
    layout: Literal["folder", "tar"] | None = affects_result(
        None, "folder: a file an image; tar: WebDataset shards, for millions of images; None: folder"
    )
    images_per_shard: int | None = affects_result(None, "images of a tar shard; None: 10,000", ge=1)
    jpeg_quality: int | None = affects_result(None, "quality of format jpeg; None: 95", ge=1, le=100)
    assume_embedder: str | None = runtime_only(
        None, "name or digest of the recognizer behind a published file that does not say: no warning then"
    )
    shard: str | None = runtime_only(None, "i/n, i from 1: make part i of n; the run that finds all parts finishes")
    workers: int | None = runtime_only(None, "batches computed at once on a CPU, a core each; None: all cores", ge=1)
    writers: int = runtime_only(4, "threads that encode and write images, per process", ge=1)
    contact_sheet: bool | None = runtime_only(
        None, "write OUT.contact_sheet.png, ten faces of each of ten people; None: of sets of up to 400 images"
    )
    strip_every: int = runtime_only(
        30, "seconds between two pictures of the latest images, OUT.strip.png; 0: none", ge=0
    )

    @field_validator("batch_size", mode="before")
    @classmethod
    def _is_number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if value is None or value == "auto" or type(value) is int and value >= 1:
            return value
        raise ValueError("a number of images from 1, or auto, is expected")

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

    @model_validator(mode="after")
    def _shards_need_tar(self) -> SampleConfig:
        if self.images_per_shard is not None and self.layout != "tar":
            raise ValueError("images_per_shard belongs to layout tar")
        return self

    @model_validator(mode="after")
    def _parts_have_one_size(self) -> SampleConfig:
        if self.shard is not None and self.batch_size == "auto":
            raise ValueError("all parts of a set need the same batch_size: with shard, auto cannot choose it")
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
    setup = _Setup(cfg, work)
    setup.place(device)
    layout = setup.layout
    state = check_output(layout.folder, setup.kind, setup.cfg, setup.parents)
    done = layout.finished()
    batch_size = setup.batch_size
    todo = [] if state == "finished" else setup.unfinished(done)
    missing = sum(i not in done for batch in todo for i in batch)
    num_batches = sum(-(-len(unit) // batch_size) for unit in todo)
    evaluations = setup.evaluations
    image_bytes = _BYTES_PER_PIXEL[cfg.format] * setup.size**2
    at = next(p for p in (layout.folder, *layout.folder.absolute().parents) if p.exists())
    return {
        "identities": len(layout.identities),
        "images": layout.num_images,
        "images done": len(done),
        "images left": missing,
        "batches left": f"{num_batches} of {batch_size} images",
        "network evaluations per image": evaluations,
        "network evaluations": evaluations * num_batches * batch_size,
        **_cost_of_filter(setup),
        **({_time_name(setup): _expected_time(setup, num_batches)} if todo else {}),
        "disk": f"{missing * image_bytes / 2**20:.1f} MiB",
        "disk free": f"{shutil.disk_usage(at).free / 2**20:.0f} MiB",
        "folder": f"{layout.folder} ({state})",
    }


def run(cfg: SampleConfig, work: Work) -> Outcome:
    """Sample all images; see the module docstring."""
    group = processes(cfg.device)
    setup = _Setup(cfg, work)
    setup.place(group.device, group)
    if group.is_first and group.device.type == "cuda" and cfg.precision == "fp32" and not cfg.compile:
        log.info("computing in fp32; precision=bf16 decoder_precision=bf16 compile=true is faster on a GPU, and "
                 "`facesyn bench sample` says by how much")
    folder = setup.layout.folder
    made = 0
    with open_shared_output(group, folder, setup.kind, "sample", setup.cfg, setup.parents, cfg.part) as output:
        if group.is_first:
            move_pictures_out(folder)
            remove_abandoned(picture_path(folder, SHEET).parent, f"{folder.name}.")
        if not output.finished:
            made = 0 if output.part_finished() else _sample(setup, group)
            made = int(group.sum(torch.tensor([made], device=group.device)).item())  # waits for all
            if group.is_first:
                _finish(setup, output)
            group.barrier()
        header = output.header
        if header and group.is_first:
            _show(cfg, folder, header.count("images"))
    counts = header.counts if header else {"part": cfg.shard}
    return Outcome(folder, {**counts, "made_now": made})


def _show(cfg: SampleConfig, folder: Path, num_images: int) -> None:
    """Write the contact sheet of a finished set, where one is wanted and it is not newer than the header already."""
    sheet = picture_path(folder, SHEET)
    if not _wants_sheet(cfg, num_images):
        return
    try:
        if lacks_sheet(cfg, folder, num_images):
            write_contact_sheet(open_images(folder), sheet, identities=10, per_id=10)
        log.info(f"look at {sheet}")
    except UserError as problem:  # the set is finished all the same
        log.warning(f"the contact sheet was not written: {problem}")


def lacks_sheet(cfg: SampleConfig, folder: Path, num_images: int) -> bool:
    """Return whether the contact sheet of a finished set is wanted and is missing or older than the header."""
    sheet = picture_path(folder, SHEET)
    if not _wants_sheet(cfg, num_images):
        return False
    return not sheet.exists() or sheet.stat().st_mtime_ns < (folder / HEADER).stat().st_mtime_ns


def _wants_sheet(cfg: SampleConfig, num_images: int) -> bool:
    return num_images <= _FEW if cfg.contact_sheet is None else cfg.contact_sheet


class _Setup:
    """The inputs, and what the settings make of them."""

    def __init__(self, cfg: SampleConfig, work: Work) -> None:
        inputs = open_inputs(
            _existing(cfg.contexts, work, "contexts", "gen-contexts"),
            _existing(cfg.ldm, work, "ldm", "train-ldm"),
            cfg.autoencoder or work.decoder_for(cfg.ldm),
            cfg.ids,
            cfg.assume_embedder,
        )
        num_ids, settings = len(inputs.identities), inputs.ldm.config
        # "All" becomes a number, so that contexts that have grown since make this folder grow as well.
        self.cfg = cfg = cfg.model_copy(update={"ids": num_ids})
        self.inputs = inputs
        self.size = cfg.size or settings.output_size
        place = (cfg.out or work.folder("samples"), inputs.identities, cfg.per_id, _SUFFIXES[cfg.format])
        self.layout: ImageFolder | TarShards = ImageFolder(*place)
        check_file_names((f"{name}/{cfg.per_id}{place[-1]}" for name in inputs.identities), place[0])
        if cfg.layout == "tar":
            self.layout = TarShards(*place, cfg.images_per_shard or _IMAGES_PER_SHARD)
        latent_shape = (settings.latent_channels, settings.latent_size, settings.latent_size)
        given_noise = open_noise_file(cfg.noise.file, num_ids, cfg.per_id, latent_shape)
        self._schedule = ldm_schedule(settings)
        self._make_scheduler = registry.build("scheduler", cfg.scheduler)
        self.guidance = registry.build("guidance", cfg.guidance)
        if self.guidance.needs_attention and not getattr(inputs.ldm.module, "has_attention_maps", False):
            raise UserError(
                f"guidance {cfg.guidance.name} records and injects attention to contexts, which this denoiser has not"
                " (conditioning ca is needed)"
            )
        self.options = InferenceOptions(
            cfg.precision, cfg.decoder_precision or "fp32", compile=cfg.compile, cuda_graphs=cfg.cuda_graphs,
            fused_qkv=cfg.fused_qkv,
        )
        if self.guidance.needs_attention and (cfg.compile or cfg.cuda_graphs):
            raise UserError(f"guidance {cfg.guidance.name} looks into the network: not with compile or cuda_graphs")
        scheduler = self.make_scheduler()  # refuses steps that do not fit
        self.evaluations = count_evaluations(scheduler, self.guidance, settings.num_timesteps)
        self.variation, varied = open_variation(cfg.variation, inputs.contexts, cfg.seed)
        negatives, avoided = open_negatives(self.guidance, cfg.guidance, inputs.contexts, cfg.seed)
        self.conditions = Conditions(
            inputs.identities, inputs.vectors, cfg.per_id, cfg.seed, latent_shape, given_noise, self.variation,
            negatives,
        )
        self.parents = {**inputs.parents, **varied, **avoided}
        if cfg.noise.file:
            self.parents["noise"] = Parent(str(cfg.noise.file), file_digest(cfg.noise.file))
        self.filter = registry.build("sample_filter", cfg.filter) if cfg.filter else None
        if self.filter:
            if self.filter.judge is None:
                raise UserError("a filter needs the weights of a judge, a face recognizer: filter.judge=FILE")
            self._judge = load_backbone(self.filter.judge)
            self.filter.check(cfg.per_id, self._judge.digest, inputs.embedder)
            self.parents["judge"] = Parent(str(self.filter.judge), self._judge.digest)

    @property
    def kind(self) -> str:
        """What the folder is: packed images are a RecordSet."""
        return "RecordSet" if isinstance(self.layout, TarShards) else "ImageSet"

    def make_scheduler(self) -> Scheduler:
        """Return a fresh scheduler for one batch."""
        return self._make_scheduler(self._schedule)

    def place(self, device: torch.device, group: Processes | None = None) -> None:
        """Say where to compute; settles the batch size, the same in all processes.

        Raises:
            UserError: The device cannot do what is asked for, or has no memory for one image.
        """
        self.device = device
        joint = device.type == "cpu" if self.cfg.joint_guidance is None else self.cfg.joint_guidance
        self.options = replace(self.options, joint_guidance=joint)
        self.options.check(device)
        self.workers = num_workers(self.cfg.workers, device, group.world_size if group else 1)
        num_images = self.layout.num_images
        self.batch_size = min(8 if device.type == "cpu" else 64, num_images)
        if self.cfg.batch_size == "auto":
            fit = fitting_batch(self.engine().measure, device, self.workers, num_images)
            self.batch_size = _smallest(fit, group) if group else fit
            self.cfg = self.cfg.model_copy(update={"batch_size": self.batch_size})
        elif self.cfg.batch_size:
            self.batch_size = min(self.cfg.batch_size, num_images)

    def unfinished(self, done: set[int]) -> list[range]:
        """Return the batches, the filter's blocks or the shards of this part of the run that are to be made."""
        if isinstance(self.layout, TarShards):
            return unfinished_shards(self.layout, self.cfg.part, self.redrawing().knows() if self.filter else None)
        if self.filter:
            return self.redrawing().unfinished(done, self.cfg.part)
        return unfinished_batches(self.layout.num_images, self.batch_size, done, self.cfg.part)

    def redrawing(self, can_draw: bool = False) -> RejectionSampling:
        """Return what draws blocks of images until the filter is content.

        Args:
            can_draw: Bring the judge to the device.
        """
        embed = Judge(self._judge.module, self._judge.input_size, self.device).embed if can_draw else None
        vectors = self.inputs.vectors.numpy()
        return RejectionSampling(self.filter, embed, vectors, self.cfg.per_id, self.batch_size, self.layout.folder)

    def engine(self) -> BatchEngine:
        """Return what computes batches on the device."""
        denoiser, decode = self._networks
        num_timesteps = self.inputs.ldm.config.num_timesteps
        return BatchEngine(
            denoiser, decode, self.conditions, self.make_scheduler, self.guidance, self.batch_size, self.device,
            num_timesteps,
        )

    @cached_property
    def _networks(self) -> tuple[FastDenoiser, LatentDecoder]:
        inputs, device = self.inputs, self.device
        autoencoder = FastAutoencoder(inputs.autoencoder.to(device), self.options, device)
        decode = LatentDecoder(autoencoder, inputs.ldm.config, self.size, device)
        return FastDenoiser(inputs.ldm.module.to(device), self.options), decode


def _smallest(count: int, group: Processes) -> int:
    """Return the smallest of the powers of two that the processes bring."""
    brought = torch.zeros(32, device=group.device)
    brought[count.bit_length() - 1] = 1
    return 1 << int(group.sum(brought).nonzero()[0])


def _time_name(setup: _Setup) -> str:
    return "expected time of the first draws" if setup.filter else "expected time"


def _cost_of_filter(setup: _Setup) -> dict[str, Any]:
    if not setup.filter:
        return {}
    draws = 1 + setup.filter.attempts
    return {
        "network evaluations per image at most": draws * setup.evaluations,
        "judge evaluations per image": f"1 to {draws}",
    }


def _expected_time(setup: _Setup, num_batches: int) -> str:
    """Measure one evaluation and one decoding of a batch, and say how long all of them take one process here."""
    engine, workers = setup.engine(), setup.workers
    with one_core_each(1, setup.device) as pool:
        if setup.device.type == "cuda":
            pool.submit(engine.measure).result()  # the first batch pays for loading kernels
        evaluation, decoding = pool.submit(engine.measure).result()
    rounds = math.ceil(num_batches / workers)
    seconds = rounds * (setup.evaluations * evaluation + decoding)
    at_once = min(engine.batch_size * workers, setup.layout.num_images)
    return f"{datetime.timedelta(seconds=round(seconds))} ({at_once} images at once)"


def _sample(setup: _Setup, group: Processes) -> int:
    """Make this process's share of what is missing; return how many images it wrote."""
    cfg, layout = setup.cfg, setup.layout
    done = layout.finished()
    todo = setup.unfinished(done)
    group.barrier()  # every process has looked before any of them writes, so all see the same list
    is_tar = isinstance(layout, TarShards)
    mine = (neighboring_share if is_tar else share)(todo, group.rank, group.world_size)
    if not mine:
        return 0
    engine = setup.engine()
    encode = encode_png if cfg.format == "png" else partial(encode_jpeg, quality=cfg.jpeg_quality or 95)
    shown_before = len(done) if cfg.part is None and group.world_size == 1 else 0
    redrawing = setup.redrawing(can_draw=True) if setup.filter else None
    with _strip(setup) if group.is_first and cfg.strip_every else nullcontext() as strip:
        shared: dict[str, Any] = {
            "encode": encode,
            "num_writers": cfg.writers,
            "num_workers": setup.workers,
            "shown_before": shown_before,
            "draw": partial(redrawing.draw, engine) if redrawing else None,
            "show": strip.show if strip else None,
        }
        if is_tar:
            return write_shards(engine, mine, layout, blocks=redrawing.blocks if redrawing else None, **shared)
        return write_batches(engine, mine, done, layout, **shared)


def _strip(setup: _Setup) -> Strip:
    cfg, layout, contexts = setup.cfg, setup.layout, setup.inputs.contexts
    faces = contexts.faces[: len(layout.identities)]
    return Strip(picture_path(layout.folder, strip_name(cfg.part)), cfg.per_id, faces, cfg.strip_every)


def _finish(setup: _Setup, output: Output) -> None:
    """Make sure that every image lies on disk, then write the header (or the part's file)."""
    cfg, layout = setup.cfg, setup.layout
    index, count = cfg.part or (1, 1)
    done = layout.finished()
    wanted = [i for batch in setup.unfinished(done) for i in batch]
    others = [k for k in range(1, count + 1) if k != index]
    is_last = all((layout.folder / f"shard-{k}-of-{count}.json").is_file() for k in others)
    if is_last:
        wanted = range(layout.num_images)  # parts made with different batch sizes would leave gaps
    gone = [i for i in wanted if i not in done]
    if gone:
        again = "the same command again" if count == 1 else "the command once more without --shard"
        raise UserError(f"{len(gone)} images are missing, first {layout.path(gone[0])}; run {again}")
    counts = {"images": layout.num_images, "identities": len(layout.identities), "per_id": cfg.per_id}
    extra = {
        "embedder": setup.inputs.embedder,
        "size": setup.size,
        "network_evaluations_per_image": setup.evaluations,
    }
    if isinstance(layout, TarShards):
        extra |= {"format": "webdataset", "name": TarShards.NAME}
        card = {**extra, "suffixes": [layout.suffix]}
        write_pack_card(layout.folder, card, counts["images"], counts["identities"], "sample")
    if setup.filter and is_last:
        judged = setup.redrawing().join(setup.conditions.key)
        extra["network_evaluations_per_image"] = setup.evaluations * judged["draws"] / layout.num_images
        counts = {**counts, **judged}
    if setup.variation and setup.variation.varies_contexts and is_last:
        digest = write_image_contexts(layout.folder, setup.conditions, layout.num_images, setup.inputs.embedder)
        extra["image_contexts"] = {"folder": IMAGE_CONTEXTS, "digest": digest}
    output.finish(counts, extra=extra)


def _existing(path: Path | None, work: Work, name: str, made_by: str) -> Path:
    path = path or work.folder(name)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; make it with `facesyn {made_by}`, name one with --{name}, or take the starter's"
            " with --starter packaged"
        )
    return path
