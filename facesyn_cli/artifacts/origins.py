"""Are the faces of a set photos of people, or were they generated? As headers say, followed to where the images began.

A set that no header describes is of unknown origin: pixels do not tell. `sample` generates, `align` cuts faces out of
photos unless its input or its user says otherwise, every other stage passes on what it reads. What `augment` adds from
contexts stands in its header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from facesyn_cli.artifacts.header import Header, Parent, read_header
from facesyn_cli.errors import UserError

Origin = Literal["photo", "generated", "unknown"]
StatedOrigin = Literal["photo", "generated"]
PHOTO, GENERATED, UNKNOWN = "photo", "generated", "unknown"

FACE_ORIGIN = "face_origin"  # in the `extra` of the header of a ContextSet, of its faces, and of `align`
ADDED_FACES = "added_faces"  # in the `extra` of an augmented set's header: origin of the faces that were added
_IMAGE_KINDS = ("ImageSet", "RecordSet")
_MAX_STAGES = 20  # headers followed from a set back to its beginning


def origin_of(path: Path, stated: StatedOrigin | None = None) -> Origin:
    """Return the origin of the images of a set: photo where any is one, generated where all are, else unknown.

    Args:
        path: Folder, zip or list of images.
        stated: What the user says they are; decides where no header does.

    Raises:
        UserError: Headers say otherwise than the user.
    """
    return agreed_origin(overall_origin(origins_of(path)), stated, str(path))


def agreed_origin(found: Origin, stated: StatedOrigin | None, where: str) -> Origin:
    """Return the origin that headers or, where they do not know, the user states.

    Raises:
        UserError: They contradict each other.
    """
    if stated is not None and found not in (UNKNOWN, stated):
        raise UserError(f"{where} holds {found} faces, as the headers of the stages that made it say; the setting says "
                        f"{stated}")
    return found if stated is None else stated


def overall_origin(origins: Mapping[Origin, int | None]) -> Origin:
    """Return what must be assumed of a set with images of these origins."""
    return next((origin for origin in (PHOTO, UNKNOWN, GENERATED) if origin in origins), UNKNOWN)


def origins_of(path: Path, num_images: int | None = None) -> dict[Origin, int | None]:
    """Return how many images of a set are of each origin.

    Args:
        path: Folder, zip or list of images.
        num_images: How many it holds; None: as its header says.

    Returns:
        Origins that occur -> number of images; None where headers do not tell how many.
    """
    return _fit(_follow(Path(path), _MAX_STAGES), num_images)


def _follow(path: Path, stages_left: int) -> dict[Origin, int | None]:
    header = read_header(path) if path.is_dir() and stages_left else None
    if header is None or header.kind not in _IMAGE_KINDS:
        return {UNKNOWN: None}
    total = header.counts.get("images")
    if header.command == "sample":
        return {GENERATED: total}
    found: dict[Origin, int | None] = {}
    for role, parent in header.parents.items():
        if role == "images" or role.startswith("input"):
            _add(found, parent, stages_left - 1)
    found = found or {UNKNOWN: None}
    if header.command == "align" and overall_origin(found) == UNKNOWN:
        found = {_known(header.extra.get(FACE_ORIGIN, PHOTO)): total}
    added = _added_by(header)
    if added is not None and total is not None:
        count = header.counts.get("added", 0)
        found = _fit(found, total - count)
        found[added] = None if found.get(added, 0) is None else found.get(added, 0) + count
    return _fit(found, total)


def _add(found: dict[Origin, int | None], parent: Parent, stages_left: int) -> None:
    """Add the counts of a set that a stage has read; nothing is known of one that has been replaced since."""
    path = Path(parent.path)
    header = read_header(path) if path.is_dir() else None
    is_same = header is not None and parent.digest in (header.digest, header.lineage)
    for origin, count in (_follow(path, stages_left) if is_same else {UNKNOWN: None}).items():
        known = found.get(origin, 0)
        found[origin] = None if known is None or count is None else known + count


def _added_by(header: Header) -> Origin | None:
    """Return the origin of the context faces that `augment` added; None where it added none."""
    if header.command != "augment":
        return None
    if ADDED_FACES in header.extra:
        return _known(header.extra[ADDED_FACES])
    augmentation = (header.config.get("identity") or {}).get("augmentation") or {}
    return UNKNOWN if augmentation.get("name") == "oversample" else None  # written before origins were kept


def _known(value: Any) -> Origin:
    """Return what a header says; unknown where it is none of the words."""
    return next((origin for origin in (PHOTO, GENERATED) if value == origin), UNKNOWN)


def _fit(found: dict[Origin, int | None], total: int | None) -> dict[Origin, int | None]:
    """Return the counts for a set of `total` images: known where there is one origin, or where they add up to it."""
    if total is None:
        return found
    if len(found) == 1:
        return dict.fromkeys(found, total)
    counts = list(found.values())
    if None not in counts and sum(counts) == total:
        return found
    return dict.fromkeys(found)
