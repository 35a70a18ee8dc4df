"""The gallery: pages to browse all images of the sets of a report, opened from disk like the report itself.

`gallery/` lies beside the report: one page per set, which holds the figures, and sprites, pictures of 128 thumbnails
each, which the browser loads as they come into view. The folder is written beside its place and moved there as a whole.

Images of the reference are not copied: beside an image of a set, the page names the nearest one and shows it only where
the report shows it too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import TEMPORARY_PREFIX, read_json, write_json, writing
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pixels import encode_jpeg, fit_square, resize_u8
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.report.gallery_rows import GalleryRows
from facesyn_cli.report.rendering import TEMPLATES, printable, render_html

FOLDER, PAGE = "gallery", "index.html"
SIDE = 80                  # of a thumbnail in pixels; a multiple of 16, the blocks of JPEG
_ACROSS, _DOWN = 16, 8     # thumbnails of a sprite
_QUALITY = 80              # of JPEG
BYTES_PER_IMAGE = 1500     # on disk, with its figures: measured on aligned faces
_MADE_FROM = "made-from.json"
_EMPTY = np.full((SIDE, SIDE, 3), 128, np.uint8)

ReadPixels = Callable[[str, str], NDArray[np.uint8] | None]  # (name of the set, key) -> (H, W, 3), None: unreadable


@dataclass(frozen=True)
class GallerySet:
    """A set of the gallery.

    Args:
        name: Its name in the report.
        origin: A sentence on the origin of its images.
        judge: Name of the judge of the figures.
        reference: Returns the keys of the reference by the rows that the figures name; called if there are any.
        photos: Key -> data URI of the images of the reference that the report shows.
        compute: Returns the figures; called if the gallery is not there yet.
    """

    name: str
    origin: str
    judge: str
    reference: Callable[[], list[str]]
    photos: dict[str, str]
    compute: Callable[[], GalleryRows]


def write_gallery(folder: Path, sets: list[GallerySet], made_from: Any, read: ReadPixels, workers: int) -> None:
    """Write the gallery of a report, unless it is there already.

    Args:
        folder: The report's folder.
        sets: The sets, in the order of the report.
        made_from: JSON value that determines the content; a gallery made from another one is replaced.
        read: Reads the images; called from threads.
        workers: Threads that read them.
    """
    place = folder / FOLDER
    if _is_made_from(place, made_from):
        return
    new, old = (folder / f"{TEMPORARY_PREFIX}{FOLDER}-{word}" for word in ("new", "old"))
    with writing(place):
        try:
            for path in (new, old):
                shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
            new.mkdir(parents=True)
            pages = [PAGE if number == 0 else f"set-{number + 1}.html" for number in range(len(sets))]
            for number, one in enumerate(sets):
                found = one.compute()
                _write_sprites(new / f"thumbs-{number + 1}", one.name, found.rows.keys, read, workers)
                links = [(other.name, page) for other, page in zip(sets, pages, strict=True)]
                page = _render(one, found, f"thumbs-{number + 1}", links, pages[number])
                (new / pages[number]).write_text(page, encoding="utf-8")
            write_json(new / _MADE_FROM, made_from)
            if place.exists():
                os.replace(place, old)
            os.replace(new, place)
        finally:
            for path in (new, old):
                shutil.rmtree(path, ignore_errors=True)


def _is_made_from(place: Path, made_from: Any) -> bool:
    try:
        return (place / _MADE_FROM).is_file() and read_json(place / _MADE_FROM) == made_from
    except UserError:
        return False


def _write_sprites(folder: Path, name: str, keys: list[str], read: ReadPixels, workers: int) -> None:
    """Write all thumbnails of a set: picture k holds images 128 k to 128 k + 127, row by row."""
    folder.mkdir()
    tiles = ordered_map(partial(_thumbnail, read, name), keys, workers, chunk=16)
    with progress(f"{name}: gallery", len(keys)) as bar:
        for number in count():
            part = list(islice(tiles, _ACROSS * _DOWN))
            if not part:
                break
            sprite = np.tile(_EMPTY, (_DOWN, _ACROSS, 1))
            for place, tile in enumerate(part):
                top, left = (SIDE * corner for corner in divmod(place, _ACROSS))
                sprite[top : top + SIDE, left : left + SIDE] = tile
            (folder / f"{number:05d}.jpg").write_bytes(encode_jpeg(sprite, _QUALITY))
            bar.advance(len(part))
            signals.check()


def _thumbnail(read: ReadPixels, name: str, key: str) -> NDArray[np.uint8]:
    pixels_u8 = read(name, key)
    return _EMPTY if pixels_u8 is None else resize_u8(fit_square(pixels_u8), SIDE)


def _render(one: GallerySet, found: GalleryRows, thumbs: str, links: list[tuple[str, str]], page: str) -> str:
    """Return the page of a set."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("gallery.css", "gallery.js"))
    base = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return render_html(
        "gallery.html.j2", name=one.name, origin=one.origin, judge=one.judge, sets=links, page=page,
        num_shown=len(found.rows.keys), num_images=found.num_images,
        num_compared=int((found.other >= 0).sum()), num_identities=len(found.rows.identities),
        style=Markup(base + style), script=Markup(script), data=_as_script(_data(one, found, thumbs)),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data(one: GallerySet, found: GalleryRows, thumbs: str) -> dict[str, Any]:
    """Return the figures for the script; cosines are in thousandths, identities and training images are numbers."""
    rows = found.rows
    shown = {name: number for number, name in enumerate(rows.identities)}
    others = [found.names[row] if row >= 0 else None for row in found.other]
    names = list(dict.fromkeys([*rows.identities, *(name for name in others if name is not None)]))
    number = {name: place for place, name in enumerate(names)}
    used = sorted({int(row) for row in found.training if row >= 0})
    place = {row: index for index, row in enumerate(used)}
    reference = one.reference() if used else []
    typical = [int(rows.starts[c] + np.argmax(rows.to_center[rows.rows_of(c)])) for c in range(len(shown))]
    return {
        "thumbs": thumbs, "across": _ACROSS, "down": _DOWN,
        "names": [printable(name) for name in names],             # the first are those of the gallery
        "starts": rows.starts.tolist(),                           # first image of each, and the number of images
        "samples": [_sample(key, name) for key, name in zip(rows.keys, (rows.identity_of(k) for k in
                                                                        range(len(rows.keys))), strict=True)],
        "typical": typical,                                       # image of each identity nearest to its center
        "quality": None if found.quality is None else _thousandths(found.quality),
        "own": _thousandths(found.to_center),
        "other": [None if name is None else number[name] for name in others],
        "toOther": _thousandths(found.to_other),
        "doubts": np.flatnonzero(found.is_doubtful).tolist(),
        "training": [place[int(row)] if row >= 0 else None for row in found.training],
        "toTraining": _thousandths(found.to_training) if used else None,
        "trainingKeys": [printable(reference[row]) for row in used],
        "photos": {str(place[row]): one.photos[reference[row]] for row in used if reference[row] in one.photos},
    }


def _sample(key: str, identity: str) -> str:
    return printable(key.removeprefix(f"{identity}/"))


def _thousandths(values: NDArray) -> list[int | None]:
    return [round(float(value) * 1000) if np.isfinite(value) else None for value in values]


def _as_script(value: Any) -> Markup:
    """Return JSON for a `script` element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
