"""`facesyn embed`: a folder or zip of faces -> unit embeddings, joined by key.

The images are cut, in their canonical order, into parts of fixed size. A part is written when its last batch is done,
and never computed again. Runs with `--shard i/n` and the processes of each take parts in turn, and whichever run finds
all of them joins them. Which images share a batch depends on that order alone, so the result is the same for any number
of runs and processes and after any number of kills.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, model_validator

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.atomic_files import write_atomically, write_text
from facesyn_cli.artifacts.embedding_set import YAW, write_embedding_blocks
from facesyn_cli.artifacts.header import Header, Parent, read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.names import one_line
from facesyn_cli.artifacts.npy_file import write_npy
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import affects_result, batch_setting, input_path, runtime_only
from facesyn_cli.config.shard import ShardedConfig
from facesyn_cli.console import log
from facesyn_cli.data.alignment import DetectFaces, FaceAligner
from facesyn_cli.data.pixels import decode_image, fit_square
from facesyn_cli.data.pose import yaw_degrees
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.data.squares import say_cut
from facesyn_cli.distributed import Processes, choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder, current_fit, settle_precision
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.models.precision import PrecisionOrAuto
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.plugins.settings import PluginConfig, PluginSection
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.arrays import read_archive

UNREADABLE = "unreadable.txt"  # one line `key, location, reason`, tabs between, for each image without an embedding
_PARTS = "parts"


class EmbedConfig(ShardedConfig):
    """Settings of `facesyn embed`."""

    images: Path | None = input_path(None, "folder or zip of faces; None: 0-images of the run")
    weights: Path | None = input_path(None, "weights of the recognizer")
    backbone: PluginConfig | None = PluginSection("backbone", default=None)  # None: detected from the weights
    flip: bool = affects_result(False, "add the output for the mirrored image; the published embeddings do not")
    fit: Annotated[Literal["square", "refuse"], BeforeValidator(current_fit)] = affects_result(
        "square", "square: the central square of images that are not square; refuse: list these as unreadable"
    )
    align: DetectFaces | None = affects_result(
        None, "align.detector=FILE: the images are photos; find and align their faces"
    )
    pose_detector: Path | None = input_path(
        None, "YuNet, a face detector in .onnx format, to store how far each face is turned, for denoiser.pose of "
        "train-ldm; None: it is not stored"
    )
    precision: PrecisionOrAuto = affects_result(
        "fp32", "number format of the network; auto: bf16 where a measurement at the start pays"
    )
    batch_size: int = batch_setting(64, "images a batch", ge=1)
    part_size: int = batch_setting(256, "images a part; a finished part is never computed again", ge=1)
    workers: int = runtime_only(4, "threads that read and decode, per process", ge=1)

    @model_validator(mode="after")
    def _poses_are_of_crops(self) -> EmbedConfig:
        if self.pose_detector is not None and self.align is not None:
            raise ValueError("pose_detector is for aligned faces, which train-ldm needs too: run facesyn align first, "
                             "and leave align out")
        return self


@dataclass(frozen=True)
class _Inputs:
    images: ImageSet
    backbone: LoadedBackbone
    parents: dict[str, Parent]
    folder: Path
    align: FaceAligner | None
    pose_detector: Yunet | None = None


def plan(cfg: EmbedConfig, work: Work) -> Plan:
    """Return what `run` would do: images, network evaluations, disk."""
    device = choose_device(cfg.device)  # an error here, not only in the run
    inputs = _open_inputs(cfg, work)
    cfg = settle_precision(cfg, inputs.folder, "EmbeddingSet", inputs.backbone, device)
    state = check_output(inputs.folder, "EmbeddingSet", cfg, inputs.parents)
    mine = _parts_of_run(cfg, inputs)
    todo = [] if state == "finished" else [part for part in mine if not _part_path(inputs.folder, part).is_file()]
    num_batches = sum(len(fixed_batches(len(part), cfg.batch_size)) for part in todo)
    return Plan(
        inputs.folder,
        state,
        {name: parent.path for name, parent in inputs.parents.items()},
        {"images": sum(map(len, mine)), "images_left": sum(map(len, todo))},
        {"recognizer": num_batches * cfg.batch_size * (2 if cfg.flip else 1)},
        2 * 4 * 512 * sum(map(len, mine)) / 2**20,
        chosen={"backbone": inputs.backbone.name, "precision": cfg.precision},
    )


def run(cfg: EmbedConfig, work: Work) -> Outcome:
    """Embed all images; see the module docstring."""
    processes = distributed.processes(cfg.device)
    inputs = _open_inputs(cfg, work)
    cfg = settle_precision(cfg, inputs.folder, "EmbeddingSet", inputs.backbone, processes.device, processes)
    folder = inputs.folder
    with open_shared_output(processes, folder, "EmbeddingSet", "embed", cfg, inputs.parents, cfg.part) as output:
        if not output.finished:
            _embed(cfg, inputs, processes)
            parts = _parts(cfg, inputs)
            output.join(
                processes, lambda: sum(not _part_path(folder, part).is_file() for part in parts), "blocks of images",
                lambda: _join(inputs, parts, output),
            )
        if output.header and processes.is_first:
            shutil.rmtree(folder / _PARTS, ignore_errors=True)  # after the header, so a kill loses nothing
        return _outcome(cfg, folder, output.header)


def _open_inputs(cfg: EmbedConfig, work: Work) -> _Inputs:
    if cfg.weights is None:
        raise UserError("embed needs the weights of a recognizer: --weights FILE, or --starter packaged")
    images = open_images(cfg.images or work.folder("images"))
    backbone = load_backbone(cfg.weights, cfg.backbone)
    parents = {"images": images.parent(), "weights": Parent(str(cfg.weights), backbone.digest)}
    align = None
    if cfg.align is not None:
        detector = Yunet(cfg.align.detector)
        align = FaceAligner(detector.find, cfg.align)
        parents["detector"] = Parent(str(cfg.align.detector), detector.digest)
    pose_detector = None
    if cfg.pose_detector is not None:
        pose_detector = Yunet(cfg.pose_detector)
        parents["pose_detector"] = Parent(str(cfg.pose_detector), pose_detector.digest)
    return _Inputs(images, backbone, parents, cfg.out or work.folder("embeddings"), align, pose_detector)


def _parts(cfg: EmbedConfig, inputs: _Inputs) -> list[range]:
    """Return the parts of the whole set."""
    return fixed_batches(len(inputs.images.entries), cfg.part_size)


def _parts_of_run(cfg: EmbedConfig, inputs: _Inputs) -> list[range]:
    """Return the parts that this run makes: its share with `--shard`, else all."""
    index, count = cfg.part or (1, 1)
    return share(_parts(cfg, inputs), index - 1, count)


def _embed(cfg: EmbedConfig, inputs: _Inputs, processes: Processes) -> None:
    """Write the missing parts of this run, divided over its processes. A collective."""
    folder = inputs.folder

    def unfinished() -> list[range]:
        todo = [part for part in _parts_of_run(cfg, inputs) if _read_part(folder, part) is None]
        return [] if read_header(folder) else todo  # else another run has just joined the parts and removed them

    mine = share(processes.from_first(unfinished), processes.rank, processes.world_size)
    embedder = FaceEmbedder.of(
        inputs.backbone, processes.device, cfg.batch_size, flip=cfg.flip, fit=cfg.fit, precision=cfg.precision,
        workers=cfg.workers, align=inputs.align,
    )
    num_left_out = 0
    with progress("embed", sum(map(len, mine))) as bar:
        found = embedder.parts(lambda index: inputs.images.read(inputs.images.entries[index]), mine, bar.advance)
        for part, batches in zip(mine, found, strict=True):
            problems = {index: why for batch in batches for index, why in batch.problems.items()}
            vectors = np.concatenate([batch.vectors for batch in batches])
            yaw = _yaw_of(inputs, part, problems, cfg.workers)
            _write_part(folder, part, vectors, problems, sum(batch.num_cut for batch in batches), yaw)
            num_left_out += len(problems)
            if num_left_out:
                bar.advance(0, left_out=num_left_out)
            signals.check()
    num_turned = inputs.align.num_turned if inputs.align is not None else 0
    if num_turned := int(processes.sum(torch.tensor([num_turned], device=processes.device)).item()):  # waits for all
        log.info(f"{num_turned} photos lie on their side or upside down; their faces were found after rotation")


def _yaw_of(inputs: _Inputs, part: range, problems: dict[int, str], workers: int) -> np.ndarray | None:
    """Return the yaw of each image of a part, (n,) float32, NaN where there is no face; None: it is not wanted."""
    if inputs.pose_detector is None:
        return None

    def yaw(index: int) -> float:
        if index in problems:
            return math.nan
        faces = inputs.pose_detector.find(fit_square(decode_image(inputs.images.read(inputs.images.entries[index]))))
        return yaw_degrees(faces[0][0]) if faces else math.nan

    with ThreadPoolExecutor(workers, thread_name_prefix="pose") as pool:
        return np.array(list(pool.map(yaw, part)), dtype=np.float32)


def _part_path(folder: Path, part: range) -> Path:
    return folder / _PARTS / f"{part.start:09d}-{part.stop:09d}.npz"


def _write_part(
    folder: Path, part: range, vectors: np.ndarray, problems: dict[int, str], num_cut: int,
    yaw: np.ndarray | None = None,
) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    for row, index in enumerate(part):
        if index not in problems and not np.isfinite(lengths[row]):
            problems[index] = "its embedding is not finite"
        elif index not in problems and lengths[row] == 0:
            problems[index] = "its embedding is zero"
    is_good = np.array([index not in problems for index in part])
    with write_atomically(_part_path(folder, part)) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, good=np.array(part)[is_good], vectors=normalize(vectors[is_good]),
            bad=np.array(sorted(problems), dtype=np.int64),
            reasons=np.array([problems[index] for index in sorted(problems)], dtype=np.str_), cut=np.array(num_cut),
            **({} if yaw is None else {"yaw": yaw[is_good]}),
        )


def _read_part(folder: Path, part: range) -> dict[str, np.ndarray] | None:
    """Return a finished part, or None when it is not there or damaged."""
    path = _part_path(folder, part)
    if not path.exists():
        return None
    try:
        stored = read_archive(path, "a finished part", ("good", "vectors", "bad", "reasons"))
        return {"cut": np.array(0), **stored}  # earlier versions counted no cuts
    except UserError as error:
        log.warning(f"{path} is damaged ({error}); computing it again")
        return None


def _finished_parts(folder: Path, parts: list[range]) -> Iterator[dict[str, np.ndarray]]:
    for part in parts:
        content = _read_part(folder, part)
        if content is None:
            raise UserError(f"{_part_path(folder, part)} is missing or damaged; run the command again without --shard")
        yield content


def _join(inputs: _Inputs, parts: list[range], output: Output) -> Header | None:
    """Write the set from its parts, the list of unreadable images and the header; one part in memory at a time."""
    entries = inputs.images.entries
    bad, good, width, num_cut = [], [], 0, 0
    for content in _finished_parts(inputs.folder, parts):
        width = content["vectors"].shape[1]
        bad += [(entries[i], str(why)) for i, why in zip(content["bad"], content["reasons"], strict=True)]
        good += [entries[i].key for i in content["good"]]
        num_cut += int(content["cut"])
    if not good:
        raise UserError(
            f"none of the {len(entries)} images in {inputs.images.path} can be embedded, "
            f"first {bad[0][0].location}: {bad[0][1]}"
        )
    blocks = (content["vectors"] for content in _finished_parts(inputs.folder, parts))
    write_embedding_blocks(inputs.folder, good, width, blocks)
    found = {}
    if inputs.pose_detector is not None:
        yaw = np.concatenate([content["yaw"] for content in _finished_parts(inputs.folder, parts)])
        with write_atomically(inputs.folder / YAW) as temporary, open(temporary, "wb") as file:
            write_npy(file, yaw)
        found = {"faces_found": int(np.isfinite(yaw).sum())}
    unreadable = inputs.folder / UNREADABLE
    unreadable.unlink(missing_ok=True)
    if bad:
        write_text(unreadable, "".join(
            f"{entry.key}\t{one_line(entry.location)}\t{' '.join(why.split())}\n" for entry, why in bad
        ))
        log.warning(f"{len(bad)} images could not be embedded; {unreadable} lists the reasons")
    say_cut(inputs.images.path, num_cut, len(entries))
    return output.finish(
        counts={"images": len(entries), "embeddings": len(good), "unreadable": len(bad), **found},
        extra={"embedder": inputs.backbone.digest, "backbone": inputs.backbone.name, **inputs.images.extra(),
               **({"cut_to_square": num_cut} if num_cut else {})},
        is_whole=True,
    )


def _outcome(cfg: EmbedConfig, folder: Path, header: Header | None) -> Outcome:
    if header is None:
        return Outcome(folder, {"part": cfg.shard})
    recognizer = {name: header.extra.get(name) for name in ("backbone", "embedder")}
    return Outcome(folder, {**header.counts, **recognizer})
