"""`facesyn sample`: contexts -> images of new identities, `<identity>/<sample>.png`.

Noise belongs to the image (`diffusion/noise.py`) and batches are fixed (`sampling/job.py`), so files are the same bits
after kills and for any number of processes.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from facesyn_cli import distributed
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import HEADER, Parent
from facesyn_cli.artifacts.lock import remove_abandoned
from facesyn_cli.artifacts.names import check_file_names
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.preview_pictures import SHEET, move_pictures_out, picture_path
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import affects_result, batch_setting, growable, input_path, runtime_only
from facesyn_cli.config.shard import ShardedConfig
from facesyn_cli.console import log
from facesyn_cli.data.picture_grid import contact_sheet, write_marked_png
from facesyn_cli.data.pixels import JPEG_QUALITY, encode_jpeg, encode_png
from facesyn_cli.diffusion.guidance_scoremix import Partners
from facesyn_cli.diffusion.scheduler_choice import with_default_scheduler
from facesyn_cli.distributed import Processes, choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.precision import Precision, PrecisionOrAuto, with_precision
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig, PluginSection
from facesyn_cli.report.pack_card import write_pack_card
from facesyn_cli.sampling.conditions import open_conditions
from facesyn_cli.sampling.engine import measure
from facesyn_cli.sampling.evaluate_once import evaluation_of
from facesyn_cli.sampling.image_contexts import FOLDER as IMAGE_CONTEXTS
from facesyn_cli.sampling.image_contexts import write_image_contexts, write_poses
from facesyn_cli.sampling.image_folder import ImageFolder
from facesyn_cli.sampling.inference import InferenceOptions
from facesyn_cli.sampling.inputs import existing_input, open_inputs
from facesyn_cli.sampling.job import SamplingJob
from facesyn_cli.sampling.pipeline import LdmPipeline
from facesyn_cli.sampling.pose import PoseSettings
from facesyn_cli.sampling.rejection_sampling import RejectionSampling, open_filter
from facesyn_cli.sampling.tar_shards import TarShards
from facesyn_cli.sampling.workers import choose_batch_size, num_workers

_SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
_FEW = 400  # images; smaller sets get a contact sheet by default
_BYTES_PER_PIXEL = {"png": 1.8, "jpeg": 0.5}  # of a face, measured; jpeg at the default quality


class NoiseSection(BaseModel):
    """Source of the starting noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = input_path(None, ".npy of shape ids x per_id x C x H x W; None: drawn per image from the seed")


class SampleConfig(ShardedConfig):
    """Settings of `facesyn sample`."""

    renamed = {"filter.centre_images": "filter.center_images"}

    ldm: Path | None = input_path(None, "folder written by train-ldm, or a published checkpoint; None: 2-ldm")
    autoencoder: Path | None = input_path(
        None, "autoencoder weights, the decoder half suffices; None: what the LDM was trained with"
    )
    contexts: Path | None = input_path(None, "folder written by gen-contexts, or a published .npy; None: 3-contexts")
    ids: int | None = growable(None, "how many identities, the first of the contexts; None: all", ge=1)
    per_id: int = growable(50, "images of each identity", ge=1)
    batch_size: int | Literal["auto"] | None = batch_setting(
        None, "images a batch; auto: the largest power of two that a GPU has memory for; None: 64 on a GPU, 8 on a CPU"
    )
    scheduler: PluginConfig = PluginSection("scheduler", default="unipc")
    guidance: PluginConfig = PluginSection("guidance", default="none")
    variation: PluginConfig | None = PluginSection("context_variation", default=None)  # None: one context per identity
    pose: PoseSettings | None = affects_result(
        None, "turn heads: pose.lowest and pose.highest in degrees; needs an LDM with denoiser.pose; None: it is left "
        "to the LDM"
    )
    filter: PluginConfig | None = PluginSection("sample_filter", default=None)  # None: none is drawn again
    precision: PrecisionOrAuto = affects_result(
        "fp32", "number format of the denoiser; auto: bf16 where a measurement of it at the start of the set pays"
    )
    decoder_precision: Precision | None = affects_result(
        None, "number format of the decoder; None: fp32. The codebook is always looked up in fp32"
    )
    compile: bool = batch_setting(False, "fuse kernels, CUDA only; a minute or two at the start")
    cuda_graphs: bool = batch_setting(
        False, "capture an evaluation as a CUDA graph and replay it; faster at small batches"
    )
    fused_qkv: bool = batch_setting(False, "one matrix product for queries, keys and values; see `bench sample`")
    joint_guidance: bool | None = batch_setting(
        None, "guided steps evaluate both contexts in one pass of twice the batch; None: on a CPU"
    )
    noise: NoiseSection = affects_result(NoiseSection(), "source of the starting noise")
    size: int | None = affects_result(None, "side of the images in pixels; None: the LDM's, 112 as published", ge=1)
    format: Literal["png", "jpeg"] = affects_result("png", "format of the images")
    layout: Literal["folder", "tar"] | None = affects_result(
        None, "folder: one file per image; tar: WebDataset shards, for millions of images; None: folder"
    )
    images_per_shard: int | None = affects_result(None, "images of a tar shard; None: 10,000", ge=1)
    jpeg_quality: int | None = affects_result(None, f"quality of format jpeg; None: {JPEG_QUALITY}", ge=1, le=100)
    assume_embedder: str | None = runtime_only(
        None, "name or digest of the recognizer behind published files that carry none; without it they get a warning"
    )
    workers: int | None = runtime_only(None, "batches computed at once on a CPU, one core each; None: all cores", ge=1)
    writers: int = runtime_only(4, "threads that encode and write images, per process", ge=1)
    contact_sheet: bool | None = runtime_only(
        None, "write OUT.contact_sheet.png, ten faces of each of ten people; None: for sets of up to 400 images"
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

    @model_validator(mode="after")
    def _settings_fit(self) -> SampleConfig:
        if self.jpeg_quality is not None and self.format != "jpeg":
            raise ValueError(f"jpeg_quality belongs to format jpeg, the format is {self.format}")
        if self.images_per_shard is not None and self.layout != "tar":
            raise ValueError("images_per_shard belongs to layout tar")
        if self.shard is not None and self.batch_size == "auto":
            raise ValueError("all parts of a set need the same batch_size: auto cannot be used with shard")
        return self


def plan(cfg: SampleConfig, work: Work) -> Plan:
    """Return what `run` would do: images, network evaluations, disk, expected time of one process."""
    cfg, job, parents = _open_job(cfg, work, choose_device(cfg.device))
    layout, folder = job.layout, job.layout.folder
    state = check_output(folder, layout.kind, cfg, parents)
    done = layout.finished()
    todo = [] if state == "finished" else job.unfinished(done)
    left = sum(i not in done for unit in todo for i in unit)
    batches = sum(-(-len(unit) // job.batch_size) for unit in todo)
    draws = 1 + job.rejection.filter.attempts if job.rejection else 1
    evaluations = {"denoiser": job.pipeline.evaluations * batches * job.batch_size, "decoder": batches * job.batch_size}
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return Plan(
        folder,
        state,
        {name: parent.path for name, parent in parents.items()},
        {
            "identities": len(layout.identities), "images": layout.num_images, "images_done": len(done),
            "images_left": left, "batches_left": batches,
        },
        {**evaluations, "judge": sum(map(len, todo))} if job.rejection else evaluations,  # of first draws
        left * _BYTES_PER_PIXEL[cfg.format] * job.pipeline.decoder.size**2 / 2**20,
        job.expected_seconds(batches) if todo else 0.0,
        {
            "batch_size": job.batch_size, "batches_at_once": job.workers, "precision": cfg.precision,
            "evaluations_per_image": job.pipeline.evaluations, "draws_per_image_at_most": draws,
            "disk_free_mib": round(shutil.disk_usage(existing).free / 2**20),
        },
    )


def run(cfg: SampleConfig, work: Work) -> Outcome:
    """Sample all images; see the module docstring."""
    processes = distributed.processes(cfg.device)
    cfg, job, parents = _open_job(cfg, work, processes.device, processes)
    if processes.is_first and processes.device.type == "cuda" and cfg.precision == "fp32" and not cfg.compile:
        log.info("computing in fp32; precision=bf16 decoder_precision=bf16 compile=true is faster on a GPU, and "
                 "`facesyn bench sample` measures by how much")
    folder = job.layout.folder
    encode = encode_png if cfg.format == "png" else partial(encode_jpeg, quality=cfg.jpeg_quality or JPEG_QUALITY)
    made = 0
    with open_shared_output(processes, folder, job.layout.kind, "sample", cfg, parents, cfg.part) as output:
        if processes.is_first:
            move_pictures_out(folder)
            remove_abandoned(picture_path(folder, SHEET).parent, f"{folder.name}.")
        if not output.finished:
            made = 0 if output.part_finished() else job.sample(processes, encode, cfg.writers, cfg.strip_every)
            if processes.is_first:
                _finish(job, output)
            processes.barrier()
        header = output.header
        if header and processes.is_first:
            _show(cfg, folder, header.count("images"))
    counts = header.counts if header else {"part": cfg.shard}
    return Outcome(folder, {**counts, "made_now": made})


def lacks_sheet(cfg: SampleConfig, folder: Path, num_images: int) -> bool:
    """Return whether the contact sheet of a finished set is due and is missing or older than the header."""
    sheet = picture_path(folder, SHEET)
    is_fresh = sheet.exists() and sheet.stat().st_mtime_ns >= (folder / HEADER).stat().st_mtime_ns
    return _has_sheet(cfg, num_images) and not is_fresh


def _has_sheet(cfg: SampleConfig, num_images: int) -> bool:
    return num_images <= _FEW if cfg.contact_sheet is None else cfg.contact_sheet


def _show(cfg: SampleConfig, folder: Path, num_images: int) -> None:
    """Write the contact sheet of a finished set where it is due, and log its path."""
    if not _has_sheet(cfg, num_images):
        return
    sheet = picture_path(folder, SHEET)
    try:
        if lacks_sheet(cfg, folder, num_images):
            write_marked_png(sheet, contact_sheet(open_images(folder), identities=10, per_id=10))
        log.info(f"contact sheet: {sheet}")
    except UserError as problem:  # the set is finished all the same
        log.warning(f"the contact sheet was not written: {problem}")


def _open_job(
    cfg: SampleConfig, work: Work, device: torch.device, processes: Processes | None = None
) -> tuple[SampleConfig, SamplingJob, dict[str, Parent]]:
    """Open the inputs; return the settings, with numbers in place of `auto`, the job, and the parents for the header.

    A collective where `processes` is given: its processes agree on one batch size.
    """
    inputs = open_inputs(
        existing_input(cfg.contexts, work, "contexts", "gen-contexts"),
        existing_input(cfg.ldm, work, "ldm", "train-ldm"), cfg.autoencoder, cfg.ids, cfg.assume_embedder,
    )
    cfg = with_default_scheduler(cfg, inputs.ldm.config.prediction)
    guidance = registry.build("guidance", cfg.guidance)
    joint_guidance = device.type == "cpu" if cfg.joint_guidance is None else cfg.joint_guidance
    folder, shape = cfg.out or work.folder("samples"), TarShards if cfg.layout == "tar" else ImageFolder
    size = cfg.batch_size if isinstance(cfg.batch_size, int) else 64
    cfg = with_precision(cfg, folder, shape.kind, device, evaluation_of(inputs.ldm, device, size), processes)
    options = InferenceOptions(
        cfg.precision, cfg.decoder_precision or "fp32", compile=cfg.compile, cuda_graphs=cfg.cuda_graphs,
        fused_qkv=cfg.fused_qkv, joint_guidance=joint_guidance,
    )
    options.check(device)
    pipeline = LdmPipeline.of(inputs.ldm, inputs.autoencoder, cfg.scheduler, guidance, device, options, cfg.size)
    conditions, read = open_conditions(
        inputs, cfg.per_id, cfg.seed, cfg.variation, guidance, cfg.guidance, cfg.noise.file, cfg.pose
    )
    parents = {**inputs.parents, **read}
    if cfg.noise.file:
        parents["noise"] = Parent(str(cfg.noise.file), file_digest(cfg.noise.file))
    place = (folder, inputs.identities, cfg.per_id, _SUFFIXES[cfg.format])
    check_file_names((f"{name}/{cfg.per_id}{place[-1]}" for name in inputs.identities), folder)
    layout = TarShards(*place, cfg.images_per_shard or 10_000) if cfg.layout == "tar" else ImageFolder(*place)
    try_batch = partial(measure, pipeline, inputs.ldm.config.embedding_size)
    batch_size = choose_batch_size(cfg.batch_size, device, layout.num_images, try_batch, processes)
    rejection = None
    if cfg.filter is not None:
        if isinstance(guidance.negatives, Partners) and getattr(cfg.filter, "reference", None) == "context":
            raise UserError("filter.reference is context, but guidance scoremix draws somebody between two contexts; "
                            "use filter.reference=center")
        sample_filter, judge, parents["judge"] = open_filter(cfg.filter, cfg.per_id, inputs.embedder)
        rejection = RejectionSampling(
            sample_filter, FaceEmbedder.of(judge, device), inputs.vectors.numpy(), cfg.per_id, batch_size, layout.folder
        )
    # "All" becomes a number, so that this folder grows with the contexts.
    numbers = {"ids": len(inputs.identities), "batch_size": batch_size if cfg.batch_size == "auto" else cfg.batch_size}
    cfg = cfg.model_copy(update=numbers)
    workers = num_workers(cfg.workers, device, processes.world_size if processes else 1)
    return cfg, SamplingJob(inputs, pipeline, conditions, layout, batch_size, workers, rejection, cfg.part), parents


def _finish(job: SamplingJob, output: Output) -> None:
    """Make sure that every image lies on disk, then write the header (or the part's file)."""
    layout, embedder, evaluations = job.layout, job.inputs.embedder, job.pipeline.evaluations
    is_last = job.check_complete()
    counts = {"images": layout.num_images, "identities": len(layout.identities), "per_id": layout.per_id}
    extra: dict[str, Any] = {
        "embedder": embedder, "size": job.pipeline.decoder.size, "network_evaluations_per_image": evaluations,
    }
    if isinstance(layout, TarShards):
        extra |= {"format": "webdataset", "name": TarShards.NAME}
        card = {**extra, "suffixes": [layout.suffix]}
        write_pack_card(layout.folder, card, counts["images"], counts["identities"], "sample")
    if job.rejection and is_last:
        judged = job.rejection.join(job.conditions.key)
        extra["network_evaluations_per_image"] = evaluations * judged["draws"] / layout.num_images
        counts = {**counts, **judged}
    variation = job.conditions.variation
    if variation and variation.varies_contexts and is_last:
        digest = write_image_contexts(layout.folder, job.conditions, layout.num_images, embedder)
        extra["image_contexts"] = {"folder": IMAGE_CONTEXTS, "digest": digest}
    if job.conditions.pose is not None and is_last:
        write_poses(layout.folder, job.conditions, layout.num_images)
    output.finish(counts, extra=extra)
