"""Origin of the faces of a set: photos of people or generated images, derived from the headers of its ancestors.

A set without a header is of unknown origin. `sample` generates, `align` crops photos unless its input or the user
states otherwise, and every other stage keeps the origin of its inputs. `augment` records the origin of the faces it
adds in its header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from facesyn_cli.artifacts.header import Header, Parent, read_header
from facesyn_cli.errors import UserError

Origin = Literal["photo", "generated", "unknown"]
StatedOrigin = Literal["photo", "generated"]
PHOTO: Origin = "photo"
GENERATED: Origin = "generated"
UNKNOWN: Origin = "unknown"

FACE_ORIGIN = "face_origin"  # in the `extra` of the header of a ContextSet, of its faces; of `align`; of pushed sets
ADDED_FACES = "added_faces"  # in the `extra` of the header of an augmented set: origin of the added faces
_IMAGE_KINDS = ("ImageSet", "RecordSet")
_FACE_ROLES = ("images", "embeddings", "reference")  # inputs of a stage whose faces its output shows or describes
_MAX_STAGES = 20  # length of the chain of headers that is followed


def origin_of(path: Path, stated: StatedOrigin | None = None) -> Origin:
    """Return the origin of the images of a set: photo if any is a photo, generated if all are, else unknown.

    Args:
        path: Folder, zip or list of images.
        stated: Origin given by the user; used where the headers do not say.

    Raises:
        UserError: The headers contradict the user.
    """
    return agreed_origin(overall_origin(origins_of(path)), stated, str(path))


def agreed_origin(found: Origin, stated: StatedOrigin | None, where: str) -> Origin:
    """Return the origin according to the headers or, where that is unknown, the user.

    Raises:
        UserError: They contradict each other.
    """
    if stated is not None and found not in (UNKNOWN, stated):
        raise UserError(f"{where} holds {found} faces according to the headers of the stages that made it; the setting "
                        f"says {stated}")
    return found if stated is None else stated


def overall_origin(origins: Mapping[Origin, int | None]) -> Origin:
    """Return the origin to assume for a set with images of these origins."""
    return next((origin for origin in (PHOTO, UNKNOWN, GENERATED) if origin in origins), UNKNOWN)


def origins_of(path: Path, num_images: int | None = None) -> dict[Origin, int | None]:
    """Return the number of images of each origin in a set.

    Args:
        path: Folder, zip or list of images.
        num_images: Number of its images; None: from its header.

    Returns:
        Origins that occur -> number of images; None if unknown.
    """
    return _fit(_follow(Path(path), _MAX_STAGES), num_images)


def origin_of_faces(folder: Path) -> Origin | None:
    """Return the origin of the faces that a finished folder shows or describes; None for one without faces.

    The faces of embeddings are those that were embedded, those of a report are in the sets and the reference that it
    shows, those of contexts the face images, or the embedded faces where these are the contexts. Weights, tables and
    studies hold no faces.
    """
    header = read_header(folder)
    if header is None or header.kind in _IMAGE_KINDS:
        return origin_of(folder)
    if header.kind == "ContextSet" and FACE_ORIGIN not in header.extra:
        source = (header.config.get("identity") or {}).get("source") or {}
        if source.get("name") != "embeddings":
            return None
    elif header.kind not in ("ContextSet", "EmbeddingSet", "PairSet", "Report"):
        return None
    if FACE_ORIGIN in header.extra:
        return _known(header.extra[FACE_ORIGIN])
    shown = [parent for role, parent in header.parents.items() if role in _FACE_ROLES or role.startswith("set ")]
    return overall_origin(dict.fromkeys((_origin_of_parent(parent) for parent in shown), None))


def _origin_of_parent(parent: Parent) -> Origin:
    path = Path(parent.path)
    header = read_header(path) if path.is_dir() else None
    if header is None or parent.digest not in (header.digest, header.lineage):
        return UNKNOWN  # not a folder of a stage, or changed since
    return origin_of_faces(path) or UNKNOWN


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
    if overall_origin(found) == UNKNOWN and (header.command == "align" or FACE_ORIGIN in header.extra):
        found = {_known(header.extra.get(FACE_ORIGIN, PHOTO)): total}
    added = _added_by(header)
    if added is not None and total is not None:
        count = header.counts.get("added", 0)
        found = _fit(found, total - count)
        found[added] = None if found.get(added, 0) is None else found.get(added, 0) + count
    return _fit(found, total)


def _add(found: dict[Origin, int | None], parent: Parent, stages_left: int) -> None:
    """Add the counts of an input of a stage; an input that has changed since is of unknown origin."""
    path = Path(parent.path)
    header = read_header(path) if path.is_dir() else None
    is_same = header is not None and parent.digest in (header.digest, header.lineage)
    for origin, count in (_follow(path, stages_left) if is_same else {UNKNOWN: None}).items():
        known = found.get(origin, 0)
        found[origin] = None if known is None or count is None else known + count


def _added_by(header: Header) -> Origin | None:
    """Return the origin of the context faces that `augment` added; None if it added none."""
    if header.command != "augment":
        return None
    if ADDED_FACES in header.extra:
        return _known(header.extra[ADDED_FACES])
    augmentation = (header.config.get("identity") or {}).get("augmentation") or {}
    return UNKNOWN if augmentation.get("name") == "oversample" else None  # of an earlier release


def _known(value: Any) -> Origin:
    """Return a value from a header if it is an origin, else unknown."""
    return next((origin for origin in (PHOTO, GENERATED) if value == origin), UNKNOWN)


def _fit(found: dict[Origin, int | None], total: int | None) -> dict[Origin, int | None]:
    """Return the counts for a set of `total` images: known if there is one origin or if they add up to `total`."""
    if total is None:
        return found
    if len(found) == 1:
        return dict.fromkeys(found, total)
    counts = list(found.values())
    if None not in counts and sum(counts) == total:
        return found
    return dict.fromkeys(found)
