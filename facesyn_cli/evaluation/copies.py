"""Copies of training images in a set, distinguished from other photos of the same person by their pixels.

All pictures are compared by thumbnail (`near_duplicates.py`), and the images nearest by cosine also with mirrored and
cropped versions of the photos of that person.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import UNVEILING, Metric, declare
from facesyn_cli.evaluation.near_duplicates import COPY, NEAR_DUPLICATE, descriptors, likeness, mirror
from facesyn_cli.evaluation.nearest import Near, Sample, nearest
from facesyn_cli.evaluation.section import SPREAD, Figure, Row, Section, clustered_error

_MAX_COMPARED = 500                         # images whose pixels are compared with all crops
_PHOTOS = 4                                 # of the nearest person, which are compared
_LISTED = 24
_FALLBACK = 0.3                             # lowest cosine of a pair whose pixels are compared, without a threshold

declare(
    Metric("privacy.copies", "Copies", "Images that are a training image again: exact, re-encoded, mirrored or "
        "cropped.", source=UNVEILING, better="lower", unit="count", headline=110, show="pairs"),
    Metric("privacy.copied_share", "Copied share", "Copies as a share of the images.", formula="copies / images",
        source=UNVEILING, better="lower", unit="share"),
    Metric("privacy.top_pairs", "Closest pairs", "The images closest to a training face, beside that face.",
        source=UNVEILING, show="pairs"),
)

Pixels = Callable[[str, str], NDArray[np.uint8] | None]


def find_copies(
    own: LabeledEmbeddings, training: LabeledEmbeddings, images: Near, pixels: Pixels,
    thresholds: dict[str, float | None], sample: Sample,
) -> Section:
    """Return the copies among the images compared: by thumbnail, then by the pixels of the pairs nearest by cosine."""
    ours, theirs = descriptors(own.thumbnails), descriptors(training.thumbnails)
    queries, is_exact = sample.of(len(ours), 2 * len(theirs))
    found: dict[int, tuple[float, str, int]] = {}                              # row -> likeness, what, training row
    for rows, what in ((ours[queries], ""), (mirror(ours[queries]), "mirrored")):
        value, where = nearest(rows, theirs)
        for k in np.flatnonzero(value >= NEAR_DUPLICATE):
            if value[k] > found.get(int(queries[k]), (-1.0, "", 0))[0]:
                found[int(queries[k])] = (float(value[k]), what, int(where[k]))
    lowest = next((value for value in thresholds.values() if value is not None), _FALLBACK)
    looked = set(queries.tolist())
    order = np.argsort(-images.cosines, kind="stable")
    near = [k for k in order if images.cosines[k] >= lowest and int(images.queries[k]) not in found]
    for k in near[:_MAX_COMPARED]:
        signals.check()
        row = int(images.queries[k])
        for source in _photos_of(training, int(images.where[k]), own.vectors[row]):
            alike = _likeness(own.image(row), training.image(source), pixels)
            if alike is not None and alike[0] >= COPY:
                found[row] = (*alike, source)
                looked.add(row)
                break
    count = len(found)
    is_copy = np.array([row in found for row in sorted(looked)], dtype=float)
    owner = own.owner[sorted(looked)]
    section = Section([
        Figure("privacy.copies", count, len(looked), "images", is_exact),
        Figure("privacy.copied_share", count / max(len(looked), 1), len(looked), "images", is_exact,
               clustered_error(is_copy, owner) if count else None, SPREAD),
    ])
    section.lists["privacy.copies"] = [
        Row(
            [own.image(row), training.image(theirs_row)], [own.identity_of(row), training.identity_of(theirs_row)],
            float(own.vectors[row] @ training.vectors[theirs_row]), value,
            f"copy, {what}" if what else "copy",
        )
        for row, (value, what, theirs_row) in sorted(found.items(), key=lambda item: -item[1][0])[:4 * _LISTED]
    ]
    if len(near) > _MAX_COMPARED:
        section.notes.append(
            f"{len(near):,} images are above the threshold; the {_MAX_COMPARED} nearest were compared pixel by pixel "
            "with mirrored and cropped training images, all others by thumbnail only."
        )
    return section


def _photos_of(training: LabeledEmbeddings, row: int, vector: NDArray[np.float32]) -> list[int]:
    """Return the rows of the person of a training image, nearest to a vector first; a crop may be nearest to any."""
    part = training.rows_of(int(training.owner[row]))
    order = np.argsort(-(training.vectors[part] @ vector), kind="stable")
    return [part.start + int(place) for place in order[:_PHOTOS]]


def top_pairs(own: LabeledEmbeddings, training: LabeledEmbeddings, images: Near, pixels: Pixels) -> list[Row]:
    """Return the nearest pairs, at most one of each identity of the set."""
    order = np.argsort(-images.cosines, kind="stable")
    _, first = np.unique(images.owner[order], return_index=True)
    rows = []
    for k in order[np.sort(first)][:_LISTED]:
        signals.check()
        row, where = int(images.queries[k]), int(images.where[k])
        alike = _likeness(own.image(row), training.image(where), pixels)
        label = "" if alike is None or alike[0] < COPY else f"copy, {alike[1]}" if alike[1] else "copy"
        rows.append(Row(
            [own.image(row), training.image(where)], [own.identity_of(row), training.identity_of(where)],
            float(images.cosines[k]), None if alike is None else alike[0], label,
        ))
    return rows


def _likeness(one: tuple[str, str], other: tuple[str, str], pixels: Pixels) -> tuple[float, str] | None:
    first, second = pixels(*one), pixels(*other)
    return None if first is None or second is None else likeness(first, second)
