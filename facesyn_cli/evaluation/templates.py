"""IJB-B and IJB-C, template against template (Whitelam et al., CVPR Workshops 2017; Maze et al., ICB 2018).

A template is a set of images and video frames of one person. As published (TFace, ArcFace), with unit
embeddings u of the images, a template is

    t = sum over its media of (mean of u over the images of the medium),   then t / |t|

and a pair of templates is compared by its dot product s. With thresholds at all scores,

    nearest    TAR at FAR f is TAR(t) at the t whose FAR(t) is nearest to f, of several the most lenient
               (as published)
    exact      max {TAR(t) : FAR(t) <= f}, where at least 10 impostors may pass
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.image_names import ImageFinder
from facesyn_cli.artifacts.images import ImageEntry, ImageSet
from facesyn_cli.artifacts.table import BenchmarkRow
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import is_count
from facesyn_cli.evaluation.verification import equal_error_rate, roc_auc, tar_at_far, unit_rows

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_PAIRS_AT_ONCE = 100_000


@dataclass(frozen=True)
class TemplateSet:
    """Templates of images, and pairs of templates with the right answers.

    Args:
        name: What the table calls it.
        images: Name of each image, for messages.
        read: From an index to the encoded bytes; safe to call from several threads.
        row_image: (R,) index of the image of every row; an image may belong to several templates.
        row_template: (R,) number of its template, 0..T-1.
        row_medium: (R,) number of its medium (a photo or a video).
        first: (P,) template of each pair.
        second: (P,) the other one.
        is_same: (P,) True where both show the same person.
        flip: Use the flip test; published: no.
        points: How the TAR is read off, see the module docstring.
    """

    name: str
    images: list[str]
    read: Callable[[int], bytes]
    row_image: NDArray[np.int64]
    row_template: NDArray[np.int64]
    row_medium: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    flip: bool = False
    points: Literal["nearest", "exact"] = "nearest"

    def __len__(self) -> int:
        return len(self.is_same)

    def judge(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the scores and answers of all pairs.

        Args:
            vectors: (images, D) embeddings, not normalised.

        Raises:
            UserError: A score is not finite.
        """
        templates = template_vectors(unit_rows(vectors)[self.row_image], self.row_template, self.row_medium)
        score = np.empty(len(self))
        for start in range(0, len(self), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            score[part] = np.einsum("ij,ij->i", templates[self.first[part]], templates[self.second[part]])
        read_off = nearest_tar if self.points == "nearest" else tar_at_far
        row = BenchmarkRow(
            benchmark=self.name,
            pairs=len(self),
            genuine=int(self.is_same.sum()),
            tar={f"{rate:.0e}": read_off(-score, self.is_same, rate) for rate in RATES},
            auc=roc_auc(-score, self.is_same),
            eer=equal_error_rate(-score, self.is_same),
        )
        return row, {"score": score, "is_same": self.is_same}


def template_vectors(unit: NDArray, template: NDArray, medium: NDArray) -> NDArray[np.float64]:
    """Return the (T, D) unit vectors of all templates.

    Args:
        unit: (R, D) unit embeddings.
        template: (R,) 0..T-1, each at least once.
        medium: (R,) numbers of the media.
    """
    order = np.lexsort((medium, template))
    pairs = np.stack([template[order], medium[order]])
    starts = np.flatnonzero(np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(0)))
    counts = np.diff(np.append(starts, len(order)))
    media = np.add.reduceat(unit[order], starts, axis=0) / counts[:, None]
    firsts = np.flatnonzero(np.append(True, np.diff(pairs[0, starts]) != 0))
    return unit_rows(np.add.reduceat(media, firsts, axis=0))


def nearest_tar(distance: NDArray, is_same: NDArray[np.bool_], far: float) -> float | None:
    """Return TAR at the threshold whose FAR is nearest to `far`; None without genuine or impostor pairs.

    Args:
        distance: (P,) small for pairs that look the same.
        is_same: (P,) True for a genuine pair.
        far: In [0, 1].
    """
    genuine, impostor = np.sort(distance[is_same]), np.sort(distance[~is_same])
    if len(genuine) == 0 or len(impostor) == 0:
        return None
    wanted = far * len(impostor)
    # numbers of impostors that some threshold accepts: with equal distances not all of 0..I
    accepted = np.append(np.searchsorted(impostor, np.unique(impostor), side="left"), len(impostor))
    off = np.abs(accepted - wanted)
    best = accepted[np.flatnonzero(off <= off.min() + 1e-9)[-1]]
    if best == len(impostor):
        return 1.0
    return float(np.searchsorted(genuine, impostor[best], side="left") / len(genuine))  # d < the next impostor


def read_templates(
    tid_mid: Path, pair_label: Path, images: ImageSet, name: str, flip: bool, points: Literal["nearest", "exact"]
) -> TemplateSet:
    """Read the protocol from its two files.

    Args:
        tid_mid: Lines `image template medium`, `ijbb_face_tid_mid.txt`.
        pair_label: Lines `template template label`, `ijbb_template_pair_label.txt`.
        images: Aligned crops of the images.
        name: What the table calls it.
        flip: See `TemplateSet`.
        points: See `TemplateSet`.

    Raises:
        UserError: A file is missing or malformed (with the line), or names images or templates that are not there.
    """
    finder = ImageFinder(images)
    used: dict[ImageEntry, int] = {}
    rows, missing = [], []
    for number, fields in _rows(tid_mid, "image template medium"):
        entry = finder.find(fields[0], named_in=tid_mid)
        if entry is None:
            missing.append(fields[0])
            continue
        rows.append((used.setdefault(entry, len(used)), *_whole(fields[1:], tid_mid, number)))
    if missing:
        raise UserError(f"{len(missing)} images of {tid_mid} are not in {images.path}, the first is {missing[0]!r}")
    image, template, medium = np.array(rows, dtype=np.int64).T
    known, template = np.unique(template, return_inverse=True)
    pairs = np.array([_whole(f, pair_label, n) for n, f in _rows(pair_label, "template template label")])
    ends = np.searchsorted(known, pairs[:, :2]).clip(max=len(known) - 1)
    strangers = pairs[:, :2][known[ends] != pairs[:, :2]]
    if len(strangers):
        raise UserError(f"{pair_label} names {len(strangers)} templates that {tid_mid} lacks, one is {strangers[0]}")
    if not np.isin(pairs[:, 2], (0, 1)).all():
        raise UserError(f"{pair_label}: labels must be 0 or 1")
    entries = list(used)
    return TemplateSet(
        name, [entry.location for entry in entries], lambda index: images.read(entries[index]),
        image, template, medium, ends[:, 0], ends[:, 1], pairs[:, 2] == 1, flip, points,
    )


def _rows(path: Path, expected: str) -> list[tuple[int, list[str]]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [(number, line.split()) for number, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    bad = next(((number, fields) for number, fields in rows if len(fields) != 3), None)
    if bad or not rows:
        found = f" line {bad[0]}: {' '.join(bad[1])[:80]!r}" if bad else " is empty"
        raise UserError(f"{path}{found}; lines `{expected}` were expected")
    return rows


def _whole(fields: list[str], path: Path, number: int) -> tuple[int, ...]:
    if not all(is_count(field.removeprefix("-")) for field in fields):
        raise UserError(f"{path} line {number}: whole numbers were expected, found {' '.join(fields)[:80]!r}")
    return tuple(int(field) for field in fields)
