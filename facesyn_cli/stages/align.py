"""`facesyn align`: photos -> face crops on the ArcFace template, the `0-images` of a run.

Threads cut the faces out. One row per photo, in the order of the set, holds the result; a photo's crop is on disk
before its row, so a killed run resumes after the last whole row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_bytes, write_text
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageEntry, ImageFinder, ImageSet
from facesyn_cli.artifacts.names import check_file_names, one_line
from facesyn_cli.artifacts.origins import FACE_ORIGIN, PHOTO, UNKNOWN, Origin, StatedOrigin, origin_of
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, input_path, runtime_only
from facesyn_cli.console import is_first_process, log, progress
from facesyn_cli.data.alignment import REASONS, AlignedFace, Face, FaceAligner, FaceChoice, NoFace, align_face
from facesyn_cli.data.append_files import AppendFile
from facesyn_cli.data.landmarks import read_landmarks, write_landmarks
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.untrusted.parsing import read_json_lines

LANDMARKS = "landmarks.csv"     # of every photo with a crop; itself a file for --landmarks
LEFT_OUT = "left-out.txt"       # `location \t reason \t more` of every photo without one
_ROWS = "rows.jsonl"
_SYNC_EVERY = 200
_BYTES_PER_PIXEL = 2.2          # of a crop as PNG, about

Cut = Callable[[ImageEntry, np.ndarray], AlignedFace]


class AlignConfig(FaceChoice, StageConfig):
    """Settings of `facesyn align`."""

    images: Path | None = input_path(None, "folder or zip of photos")
    detector: Path | None = input_path(None, "YuNet face detector, an .onnx file")
    landmarks: Path | None = input_path(None, "given landmarks instead of a detector: CelebA's list, pts_list or CSV")
    size: int = affects_result(112, "side of the crops in pixels; the template grows with it", ge=16, le=1024)
    origin: StatedOrigin | None = runtime_only(
        None, "photo (of real people) or generated: what the images are; None: as their headers say, else photo"
    )
    workers: int = runtime_only(2, "threads", ge=0)


@dataclass(frozen=True)
class _Inputs:
    images: ImageSet
    cut: Cut
    parents: dict[str, Parent]
    folder: Path


def plan(cfg: AlignConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    inputs = _open_inputs(cfg, work)
    count = len(inputs.images.entries)
    return Plan(
        inputs.folder, check_output(inputs.folder, "ImageSet", cfg, inputs.parents),
        {name: parent.path for name, parent in inputs.parents.items()}, {"photos": count},
        disk_mib=_BYTES_PER_PIXEL * cfg.size**2 * count / 2**20,
    )


def run(cfg: AlignConfig, work: Work) -> Outcome:
    """Cut the faces out; only the first of several processes works.

    Raises:
        UserError: An input is missing or wrong, or no photo has a face.
    """
    folder = _folder(cfg, work)
    if not is_first_process():
        return Outcome(folder, {})
    inputs = _open_inputs(cfg, work)
    origin = origin_of(inputs.images.named_in or inputs.images.path, cfg.origin)
    with open_output(folder, "ImageSet", "align", cfg, inputs.parents) as out:
        if not out.finished:
            _align(cfg, inputs, folder)
            _finish(inputs.images, PHOTO if origin == UNKNOWN else origin, out)
    num_photos, num_images = out.header.count("photos"), out.header.count("images")
    if turned := out.header.counts.get("turned"):
        log.info(f"{turned} of {num_photos} photos lie on their side or upside down; their faces were found in the "
                 "turned photo")
    if missing := num_photos - num_images:
        log.warning(f"{missing} of {num_photos} photos have no crop; {folder / LEFT_OUT} says why")
    return Outcome(folder, dict(out.header.counts))


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


def _align(cfg: AlignConfig, inputs: _Inputs, folder: Path) -> None:
    """Write the crop and the row of every photo."""
    entries = inputs.images.entries
    earlier = (folder / _ROWS).read_bytes() if (folder / _ROWS).is_file() else b""
    done, size = earlier.count(b"\n"), earlier.rfind(b"\n") + 1  # whole rows

    def work_on(entry: ImageEntry) -> dict[str, Any]:
        try:
            aligned = inputs.cut(entry, decode_image(inputs.images.read(entry)))
        except NoFace as error:
            return {"reason": error.reason, "more": str(error)}
        except (UnreadableImage, UserError) as error:
            return {"reason": "unreadable", "more": str(error)}
        write_bytes(folder / f"{entry.key}.png", encode_png(aligned.pixels_u8), durable=False)
        return {
            "landmarks": aligned.face.landmarks.ravel().tolist(), "score": aligned.face.score,
            "faces": aligned.num_faces, "turned": aligned.quarter_turns > 0,
        }

    rows = AppendFile(folder / _ROWS, size)
    try:
        with progress("align", len(entries), done=done) as bar:
            for number, row in enumerate(ordered_map(work_on, entries[done:], cfg.workers), done + 1):
                rows.write((json.dumps(row) + "\n").encode())
                bar.advance()
                if number % _SYNC_EVERY == 0 or signals.received():
                    rows.sync()
                    signals.check()
        rows.sync()
    finally:
        rows.close()


def _finish(images: ImageSet, origin: Origin, out: Output) -> None:
    rows = list(read_json_lines(out.folder / _ROWS))
    pairs = list(zip(images.entries, rows, strict=True))
    good = [(entry, row) for entry, row in pairs if "landmarks" in row]
    bad = [(entry, row) for entry, row in pairs if "landmarks" not in row]
    if not good:
        entry, row = bad[0]
        raise UserError(f"none of the {len(rows)} photos in {images.path} has a face that fits, first "
                        f"{entry.location}: {row['more']}")
    write_text(out.folder / LANDMARKS, write_landmarks([
        (entry.location, Face(np.array(row["landmarks"]).reshape(5, 2), row["score"])) for entry, row in good
    ]))
    if bad:
        lines = (f"{one_line(e.location)}\t{row['reason']}\t{' '.join(row['more'].split())}\n" for e, row in bad)
        write_text(out.folder / LEFT_OUT, "".join(lines))
    reasons = Counter(row["reason"] for _, row in bad)
    out.finish({
        "photos": len(rows),
        "images": len(good),
        "identities": len({entry.identity for entry, _ in good}),
        "several_faces": sum(row["faces"] > 1 for _, row in good),
        "turned": sum(row.get("turned", False) for _, row in good),
        **{reason: reasons[reason] for reason in (*REASONS, "unreadable")},
    }, {FACE_ORIGIN: origin, **images.extra()})
    (out.folder / _ROWS).unlink(missing_ok=True)
