"""Near-duplicate images: small gray versions compared by normalized correlation.

Embeddings do not separate a copy from another photo of the same person; pixels do. Every image is reduced to
16 x 16 gray values; with the mean removed and scaled to length 1, the dot product of two of them is the
correlation of the images. On aligned real faces (CelebA) different photos of one person rarely exceed 0.97,
re-encoded, noisy and brightened copies are above 0.978. For single pairs `likeness` also compares
mirrored and cropped versions: of the 650 pairs nearest by cosine between real faces of CelebA and of LFW none
exceeds 0.89, copies cropped to 75 % of the side and more reach 0.98.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facesyn_cli import signals
from facesyn_cli.data.pixels import fit_square
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import Metric, declare
from facesyn_cli.evaluation.nearest import Sample, nearest, rows_at_once
from facesyn_cli.evaluation.section import SPREAD, Figure, Finding, Row, Section, clustered_error

SIDE = 16
NEAR_DUPLICATE = 0.98   # correlation of two thumbnails from which they count as near-duplicates
COPY = 0.95             # the same for `likeness`, on 32 x 32 with the best crop
_FINE_SIDE = 32
_SCALES = (0.95, 0.85, 0.75)
_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
_REFINEMENTS = 3
_LISTED = 24
_MANY_DUPLICATES = 0.01

declare(
    Metric("diversity.near_duplicates_within", "Near-duplicates within identities", "Share of images that nearly "
        "repeat another image of the same identity.", better="lower", unit="share"),
    Metric("diversity.near_duplicates_between", "Near-duplicates between identities", "Share of images that nearly "
        "repeat an image of another identity.", better="lower", unit="share"),
    Metric("diversity.near_duplicates", "Near-duplicates", "Pairs of images that are almost identical.",
        show="pairs"),
)


def thumbnail(pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (16, 16) mean gray values of the central square of (H, W, 3) RGB."""
    return np.asarray(_gray(pixels_u8).resize((SIDE, SIDE), Image.Resampling.BOX))


def descriptors(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return unit rows whose dot products are correlations; a picture of one color becomes a zero row.

    Args:
        thumbnails: (N, h, w) gray values.

    Returns:
        (N, h * w).
    """
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 1e-3, lengths, np.inf)  # in place: of 500,000 images they take half a GB
    return rows


def mirror(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the descriptors of the mirrored pictures, (N, side * side)."""
    side = round(rows.shape[1] ** 0.5)
    return np.ascontiguousarray(rows.reshape(-1, side, side)[:, :, ::-1]).reshape(len(rows), -1)


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, str]:
    """Compare two pictures, (H, W, 3) uint8 each, allowing for a mirror and a crop of either.

    Crops cover 70 to 100 % of the side anywhere in the picture; a coarse grid is refined around its best place.

    Returns:
        Highest correlation in [-1, 1], and what was done for it: empty, `mirrored`, `cropped` or both.
    """
    whole = [_gray(first), _gray(second)]
    plain = [_fine([image.resize((_FINE_SIDE,) * 2, Image.Resampling.BOX)]) for image in whole]
    best = max(_compare(plain[0], plain[1], ""), key=lambda found: found[0])
    if best[0] >= COPY:
        return best
    for image, other in ((whole[0], plain[1]), (whole[1], plain[0])):
        boxes = [(scale, x, y) for scale in _SCALES for x in _PLACES for y in _PLACES]
        found, box = _best_crop(image, boxes, other)
        step = (0.05, 0.125)
        for _ in range(_REFINEMENTS):
            near = [
                (box[0] + a * step[0], np.clip(box[1] + b * step[1], 0, 1), np.clip(box[2] + c * step[1], 0, 1))
                for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) if 0.65 <= box[0] + a * step[0] <= 1
            ]
            found, box = max((found, box), _best_crop(image, near, other), key=lambda item: item[0][0])
            step = (step[0] / 2, step[1] / 2)
        best = max(best, found, key=lambda item: item[0])
    return best


def duplicates_section(faces: LabeledEmbeddings, max_pairs: int, seed: int) -> Section:
    """Return the near-duplicates within identities and between them.

    Args:
        faces: The set, with thumbnails.
        max_pairs: Pairs between identities to compute at most; beyond, images are drawn at random.
        seed: Seed of that.
    """
    rows, owner = descriptors(faces.thumbnails), faces.owner
    within, partner, value = _repeats(rows, faces.starts)
    queries, is_exact = Sample(max_pairs, seed).of(len(rows), 2 * len(rows))
    best, where = nearest(rows[queries], rows, owner[queries], owner)
    flipped, flipped_where = nearest(mirror(rows[queries]), rows, owner[queries], owner)
    is_flipped = flipped > best
    best, where = np.where(is_flipped, flipped, best), np.where(is_flipped, flipped_where, where)
    between = best >= NEAR_DUPLICATE
    section = Section([
        _duplicate_figure("diversity.near_duplicates_within", within, owner, True),
        _duplicate_figure("diversity.near_duplicates_between", between, owner[queries], is_exact),
    ])
    repeated = np.flatnonzero(between & ((queries < where) | (not is_exact)))  # of an exact search each pair once
    found = [(value[row], row, partner[row], "") for row in _highest(np.flatnonzero(within), value)]
    found += [(best[k], queries[k], where[k], "other identity") for k in _highest(repeated, best)]
    found.sort(key=lambda item: (-item[0], item[1]))
    section.lists["diversity.near_duplicates"] = [
        Row([faces.image(i), faces.image(j)], list(dict.fromkeys((faces.identity_of(i), faces.identity_of(j)))),
            likeness=float(score), label=label)
        for score, i, j, label in found[:_LISTED]
    ]
    for name, is_repeat, words in (("within", within, "their own identity"), ("between", between, "another identity")):
        if not is_repeat.any():
            continue
        share = is_repeat.mean()
        level, some = ("fault", f"{share:.1%} of the images repeat") if share > _MANY_DUPLICATES else (
            "note", f"{is_repeat.sum():,} of {len(is_repeat):,} images repeat")
        section.findings.append(Finding(
            level, f"{some} an image of {words} (near-duplicate pixels).", [f"diversity.near_duplicates_{name}"],
            ["diversity.near_duplicates"],
        ))
    return section


def _highest(places: NDArray[np.int64], values: NDArray) -> NDArray[np.int64]:
    """Return the places with the highest values, as many as are listed."""
    return places[np.argsort(-values[places], kind="stable")[:_LISTED]]


def _repeats(rows: NDArray, starts: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Return which images repeat an earlier one of their identity, its row, and the correlation; (N,) each."""
    repeats = np.zeros(len(rows), dtype=bool)
    partner = np.full(len(rows), -1, dtype=np.int64)
    value = np.zeros(len(rows))
    for number, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        if number % 1000 == 0:
            signals.check()
        size = rows_at_once(stop - start)
        for first in range(start, stop, size):
            block = slice(first, min(first + size, stop))
            scores = rows[block] @ rows[start : block.stop].T
            np.maximum(scores, mirror(rows[block]) @ rows[start : block.stop].T, out=scores)
            here = np.arange(first, block.stop)
            scores[np.arange(start, block.stop)[None] >= here[:, None]] = -1   # only earlier ones count
            at = scores.argmax(axis=1)
            highest = scores[np.arange(len(at)), at]
            repeats[block] = highest >= NEAR_DUPLICATE
            partner[block], value[block] = at + start, highest
    return repeats, partner, value


def _duplicate_figure(name: str, is_duplicate: NDArray, owner: NDArray, is_exact: bool) -> Figure:
    return Figure(name, float(np.mean(is_duplicate)), len(is_duplicate), "images", is_exact,
                  clustered_error(is_duplicate, owner), SPREAD)


def _gray(pixels_u8: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(fit_square(pixels_u8))).convert("L")


def _fine(images: list[Image.Image]) -> NDArray[np.float32]:
    return descriptors(np.stack([np.asarray(image) for image in images]))


def _compare(rows: NDArray, other: NDArray, what: str) -> list[tuple[float, str]]:
    return [
        (float((rows @ other.T).max()), what),
        (float((rows @ mirror(other).T).max()), f"mirrored, {what}" if what else "mirrored"),
    ]


def _best_crop(
    image: Image.Image, boxes: list[tuple[float, float, float]], other: NDArray
) -> tuple[tuple[float, str], tuple[float, float, float]]:
    """Return the best (correlation, what), and its box (scale, x, y); x and y are its place in the free margin."""
    side = image.width
    crops = []
    for scale, x, y in boxes:
        left, top = x * (1 - scale) * side, y * (1 - scale) * side
        crops.append(image.resize(
            (_FINE_SIDE,) * 2, Image.Resampling.BOX, box=(left, top, left + scale * side, top + scale * side)
        ))
    rows = _fine(crops)
    plain, flipped = (rows @ other.T)[:, 0], (rows @ mirror(other).T)[:, 0]
    if plain.max() >= flipped.max():
        return (float(plain.max()), "cropped"), boxes[int(plain.argmax())]
    return (float(flipped.max()), "mirrored, cropped"), boxes[int(flipped.argmax())]
