"""`facesyn align`: photos -> face crops on the ArcFace template, the `0-images` of a run.

The photos, in the order of the set, are cut into parts. One row per photo holds its result, and the rows of a part are
written when all its crops are, so a finished part is never done again. Runs with `--shard i/n` and the processes of
each take parts in turn, and whichever run finds all of them joins their rows.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.atomic_files import write_bytes, write_text
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Header, Parent, read_header
from facesyn_cli.artifacts.image_set import ImageEntry, ImageFinder, ImageSet
from facesyn_cli.artifacts.names import check_file_names, one_line
from facesyn_cli.artifacts.origins import FACE_ORIGIN, PHOTO, UNKNOWN, Origin, StatedOrigin, origin_of
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import affects_result, input_path, runtime_only
from facesyn_cli.config.shard import ShardedConfig
from facesyn_cli.console import log
from facesyn_cli.data.alignment import REASONS, AlignedFace, Face, FaceAligner, FaceChoice, NoFace, align_face
from facesyn_cli.data.landmarks import read_landmarks, write_landmarks
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_png
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.parsing import read_json_lines

LANDMARKS = "landmarks.csv"     # of every photo with a crop; itself a file for --landmarks
LEFT_OUT = "left-out.txt"       # `location \t reason \t more` of every photo without one
_ROWS = ".unfinished"           # a file per part, JSON lines
_BYTES_PER_PIXEL = 2.2          # of a crop as PNG, about

Cut = Callable[[ImageEntry, np.ndarray], AlignedFace]


class AlignConfig(FaceChoice, ShardedConfig):
    """Settings of `facesyn align`."""

    images: Path | None = input_path(None, "folder or zip of photos")
    detector: Path | None = input_path(None, "YuNet face detector, an .onnx file")
    landmarks: Path | None = input_path(None, "given landmarks instead of a detector: CelebA's list, pts_list or CSV")
    size: int = affects_result(112, "side of the crops in pixels; the template grows with it", ge=16, le=1024)
    origin: StatedOrigin | None = runtime_only(
        None, "photo (of real people) or generated: what the images are; None: as their headers say, else photo"
    )
    part_size: int = runtime_only(64, "photos a part; a finished part is never done again", ge=1)
    workers: int = runtime_only(2, "threads, per process", ge=0)


@dataclass(frozen=True)
class _Inputs:
    images: ImageSet
    cut: Cut
    parents: dict[str, Parent]
    folder: Path


def plan(cfg: AlignConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    inputs = _open_inputs(cfg, work)
    state = check_output(inputs.folder, "ImageSet", cfg, inputs.parents)
    mine = _parts_of_run(cfg, inputs.images)
    todo = [] if state == "finished" else [part for part in mine if not _rows_path(inputs.folder, part).is_file()]
    photos = sum(map(len, mine))
    return Plan(
        inputs.folder, state, {name: parent.path for name, parent in inputs.parents.items()},
        {"photos": photos, "photos_left": sum(map(len, todo))},
        disk_mib=_BYTES_PER_PIXEL * cfg.size**2 * photos / 2**20,
    )


def run(cfg: AlignConfig, work: Work) -> Outcome:
    """Cut the faces out; see the module docstring.

    Raises:
        UserError: An input is missing or wrong, or no photo has a face.
    """
    processes = distributed.processes(cfg.device)
    inputs = _open_inputs(cfg, work)
    folder, images = inputs.folder, inputs.images
    origin = origin_of(images.named_in or images.path, cfg.origin)
    with open_shared_output(processes, folder, "ImageSet", "align", cfg, inputs.parents, cfg.part) as output:
        if not output.finished:
            _align(cfg, inputs, processes)
            parts = _parts(cfg, images)
            output.join(
                processes, lambda: sum(not _rows_path(folder, part).is_file() for part in parts), "blocks of photos",
                lambda: _finish(images, parts, PHOTO if origin == UNKNOWN else origin, output),
            )
        header = output.header
        if header is None:
            return Outcome(folder, {"part": cfg.shard})
        if processes.is_first:
            shutil.rmtree(folder / _ROWS, ignore_errors=True)  # after the header, so a kill loses nothing
    num_photos, num_images = header.count("photos"), header.count("images")
    if turned := header.counts.get("turned"):
        log.info(f"{turned} of {num_photos} photos lie on their side or upside down; their faces were found in the "
                 "turned photo")
    if missing := num_photos - num_images:
        log.warning(f"{missing} of {num_photos} photos have no crop; {folder / LEFT_OUT} says why")
    return Outcome(folder, dict(header.counts))


def _open_inputs(cfg: AlignConfig, work: Work) -> _Inputs:
    if cfg.images is None:
        raise UserError("align needs photos: --images FOLDER or zip")
    if (cfg.detector is None) == (cfg.landmarks is None):
        raise UserError("align needs either --detector FILE (YuNet) or --landmarks FILE (CelebA's list, pts_list, CSV)")
    images = open_images(cfg.images)
    warn_of_unclear_identities(images)
    check_file_names((f"{entry.key}.png" for entry in images.entries), _folder(cfg, work))
    parents = {"images": images.parent()}
    if cfg.detector is not None:
        detector = Yunet(cfg.detector)
        aligner = FaceAligner(detector.find, cfg, cfg.size)
        parents["detector"] = Parent(str(cfg.detector), detector.digest)
        return _Inputs(images, lambda entry, pixels_u8: aligner.align(pixels_u8), parents, _folder(cfg, work))
    parents["landmarks"] = Parent(str(cfg.landmarks), file_digest(cfg.landmarks))
    faces = _join(cfg.landmarks, images)

    def cut(entry: ImageEntry, pixels_u8: np.ndarray) -> AlignedFace:
        if entry.key not in faces:
            raise NoFace("no_landmarks", f"{cfg.landmarks.name} does not name it")
        return align_face(pixels_u8, faces[entry.key], cfg, cfg.size)

    return _Inputs(images, cut, parents, _folder(cfg, work))


def _folder(cfg: AlignConfig, work: Work) -> Path:
    return cfg.out or work.folder("images")


def _join(path: Path, images: ImageSet) -> dict[str, list[Face]]:
    """Return the given faces by the key of their image; names that are not in the set are counted."""
    finder = ImageFinder(images)
    found: dict[str, list[Face]] = {}
    strangers = []
    for name, faces in read_landmarks(path).items():
        entry = finder.find(name, named_in=path)
        if entry is None:
            strangers.append(name)
        else:
            found.setdefault(entry.key, []).extend(faces)
    if not found:
        raise UserError(f"none of the images that {path} names is in {images.path}; the first is {strangers[0]!r}")
    if strangers:
        log.info(f"{path} names {len(strangers)} images that are not in {images.path}, for example {strangers[0]!r}")
    return found


def _parts(cfg: AlignConfig, images: ImageSet) -> list[range]:
    """Return the parts of the whole set."""
    return fixed_batches(len(images.entries), cfg.part_size)


def _parts_of_run(cfg: AlignConfig, images: ImageSet) -> list[range]:
    """Return the parts that this run makes: its share with `--shard`, else all."""
    index, count = cfg.part or (1, 1)
    return share(_parts(cfg, images), index - 1, count)


def _rows_path(folder: Path, part: range) -> Path:
    return folder / _ROWS / f"{part.start:09d}-{part.stop:09d}.jsonl"


def _align(cfg: AlignConfig, inputs: _Inputs, processes: Processes) -> None:
    """Write the crops and rows of the missing parts of this run, divided over its processes. A collective."""
    images, folder = inputs.images, inputs.folder

    def unfinished() -> list[range]:
        todo = [part for part in _parts_of_run(cfg, images) if not _rows_path(folder, part).is_file()]
        return [] if read_header(folder) else todo  # else another run has just joined the parts and removed them

    def work_on(entry: ImageEntry) -> dict[str, Any]:
        try:
            aligned = inputs.cut(entry, decode_image(images.read(entry)))
        except NoFace as error:
            return {"reason": error.reason, "more": str(error)}
        except (UnreadableImage, UserError) as error:
            return {"reason": "unreadable", "more": str(error)}
        write_bytes(folder / f"{entry.key}.png", encode_png(aligned.pixels_u8), durable=False)
        return {
            "landmarks": aligned.face.landmarks.ravel().tolist(), "score": aligned.face.score,
            "faces": aligned.num_faces, "turned": aligned.quarter_turns > 0,
        }

    mine = share(processes.from_first(unfinished), processes.rank, processes.world_size)
    rows = ordered_map(work_on, (images.entries[index] for part in mine for index in part), cfg.workers)
    counts = {True: 0, False: 0}  # whether a face was found -> photos
    with progress("align", sum(map(len, mine))) as bar:
        for part in mine:
            lines = []
            for row in islice(rows, len(part)):
                lines.append(f"{json.dumps(row)}\n")
                counts["landmarks" in row] += 1
                bar.advance(found=counts[True], left_out=counts[False])
            write_text(_rows_path(folder, part), "".join(lines))
            signals.check()
    processes.barrier()


def _results(images: ImageSet, parts: list[range], folder: Path) -> Iterator[tuple[ImageEntry, dict[str, Any]]]:
    """Yield every photo with its row."""
    for part in parts:
        path = _rows_path(folder, part)
        rows = list(read_json_lines(path))
        if len(rows) != len(part):
            raise UserError(f"{path} has {len(rows)} rows, {len(part)} were expected; remove it and run the command "
                            "again without --shard")
        yield from zip(images.entries[part.start : part.stop], rows, strict=True)


def _finish(images: ImageSet, parts: list[range], origin: Origin, out: Output) -> Header | None:
    """Write the lists of all photos, and the header."""
    faces: list[tuple[str, Face]] = []
    left_out: list[str] = []
    identities, counts = set(), Counter({"several_faces": 0, "turned": 0})
    for entry, row in _results(images, parts, out.folder):
        if "landmarks" in row:
            faces.append((entry.location, Face(np.array(row["landmarks"]).reshape(5, 2), row["score"])))
            identities.add(entry.identity)
            counts["several_faces"] += row["faces"] > 1
            counts["turned"] += row.get("turned", False)
        else:
            left_out.append(f"{one_line(entry.location)}\t{row['reason']}\t{' '.join(row['more'].split())}\n")
            counts[row["reason"]] += 1
    if not faces:
        entry, row = next(_results(images, parts, out.folder))
        raise UserError(f"none of the {len(images.entries)} photos in {images.path} has a face that fits, first "
                        f"{entry.location}: {row['more']}")
    write_text(out.folder / LANDMARKS, write_landmarks(faces))
    if left_out:
        write_text(out.folder / LEFT_OUT, "".join(left_out))
    return out.finish({
        "photos": len(images.entries),
        "images": len(faces),
        "identities": len(identities),
        "several_faces": counts["several_faces"],
        "turned": counts["turned"],
        **{reason: counts[reason] for reason in (*REASONS, "unreadable")},
    }, {FACE_ORIGIN: origin, **images.extra()}, is_whole=True)
