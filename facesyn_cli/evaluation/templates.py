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

import io
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.artifacts.image_set import ImageEntry, ImageFinder, ImageSet
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import is_count
from facesyn_cli.evaluation.verification import equal_error_rate, roc_auc, sorted_classes, tar_at_far, unit_rows
from facesyn_cli.untrusted.input_files import open_input, read_lines

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_PAIRS_AT_ONCE = 4096  # two rows of 512 numbers each: 34 MB
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class TemplateSet:
    """Templates of images, and pairs of templates with the right answers."""

    unit: ClassVar[str] = "pairs"

    name: str                                        # name in the table
    images: list[str]                                # name of each image, for messages
    read: Callable[[int], bytes]                     # from an index to the encoded bytes; safe to call from several
                                                     # threads
    row_image: NDArray[np.int64]                     # (R,) index of the image of every row; an image may belong to
                                                     # several templates
    row_template: NDArray[np.int64]                  # (R,) number of its template, 0..T-1
    row_medium: NDArray[np.int64]                    # (R,) number of its medium (a photo or a video)
    first: NDArray[np.int32]                         # (P,) template of each pair
    second: NDArray[np.int32]                        # (P,) the other one
    is_same: NDArray[np.bool_]                       # (P,) True where both show the same person
    flip: bool = False                               # use the flip test; published: no
    points: Literal["nearest", "exact"] = "nearest"  # rule for the TAR, see the module docstring

    def __len__(self) -> int:
        return len(self.is_same)

    def evaluate(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the scores and answers of all pairs; see `EvaluationSet.evaluate`."""
        templates = template_vectors(vectors, self.row_image, self.row_template, self.row_medium)
        distance = np.empty(len(self))
        for start in range(0, len(self), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            distance[part] = -np.einsum("ij,ij->i", templates[self.first[part]], templates[self.second[part]])
        read_off = nearest_tar if self.points == "nearest" else tar_at_far
        row = BenchmarkRow(
            benchmark=self.name,
            pairs=len(self),
            genuine=int(self.is_same.sum()),
            tar={f"{rate:.0e}": read_off(distance, self.is_same, rate) for rate in RATES},
            auc=roc_auc(distance, self.is_same),
            eer=equal_error_rate(distance, self.is_same),
        )
        return row, {"score": np.negative(distance, out=distance), "is_same": self.is_same}


def template_vectors(vectors: NDArray, image: NDArray, template: NDArray, medium: NDArray) -> NDArray[np.float64]:
    """Return the (T, D) unit vectors of all templates.

    Args:
        vectors: (images, D) embeddings, of any length.
        image: (R,) which of them each row is.
        template: (R,) 0..T-1, each at least once.
        medium: (R,) numbers of the media.
    """
    order = np.lexsort((medium, template))
    starts = np.flatnonzero(np.append(True, np.diff(template[order]) != 0))   # (T,) first row of each template
    found = np.empty((len(starts), vectors.shape[1]))
    ends = np.append(starts[1:], len(order))
    done = 0
    while done < len(starts):  # whole templates at a time: the rows of IJB-C would take 2 GB more
        stop = max(done + 1, int(np.searchsorted(ends, starts[done] + _ROWS_AT_ONCE, side="right")))
        rows = order[starts[done] : ends[stop - 1]]
        found[done:stop] = _template_sums(unit_rows(vectors[image[rows]]), template[rows], medium[rows])
        done = stop
    return unit_rows(found)


def _template_sums(unit: NDArray, template: NDArray, medium: NDArray) -> NDArray[np.float64]:
    """Return the sum over the media of each template; the rows are sorted by template and medium."""
    pairs = np.stack([template, medium])
    starts = np.flatnonzero(np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(0)))
    counts = np.diff(np.append(starts, len(template)))
    media = np.add.reduceat(unit, starts, axis=0) / counts[:, None]
    firsts = np.flatnonzero(np.append(True, np.diff(template[starts]) != 0))
    return np.add.reduceat(media, firsts, axis=0)


def nearest_tar(distance: NDArray, is_same: NDArray[np.bool_], far: float) -> float | None:
    """Return TAR at the threshold whose FAR is nearest to `far`; None without genuine or impostor pairs.

    Args:
        distance: (P,) small for pairs that look the same.
        is_same: (P,) True for a genuine pair.
        far: In [0, 1].

    Raises:
        UserError: A distance is not finite.
    """
    genuine, impostor = sorted_classes(distance, is_same)
    if len(genuine) == 0 or len(impostor) == 0:
        return None
    target = far * len(impostor)
    # numbers of impostors that some threshold accepts, next to the target; equal distances are accepted together
    at = impostor[min(int(target), len(impostor) - 1)]
    fewer, more = (int(np.searchsorted(impostor, at, side=side)) for side in ("left", "right"))
    best = more if more - target <= target - fewer + 1e-9 else fewer
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
        name: Name in the table.
        flip: See `TemplateSet`.
        points: See `TemplateSet`.

    Raises:
        UserError: A file is missing or malformed (with the line), or names images or templates that are not there.
    """
    finder = ImageFinder(images)
    used: dict[ImageEntry, int] = {}
    rows, missing = array("q"), []
    for number, fields in _rows(tid_mid, "image template medium"):
        entry = finder.find(fields[0], named_in=tid_mid)
        if entry is None:
            missing.append(fields[0])
            continue
        rows.extend((used.setdefault(entry, len(used)), *_whole(fields[1:], tid_mid, number)))
    if missing:
        raise UserError(f"{len(missing)} images of {tid_mid} are not in {images.path}, the first is {missing[0]!r}")
    image, template, medium = np.frombuffer(rows, np.int64).reshape(-1, 3).T
    known, template = np.unique(template, return_inverse=True)
    pairs = _read_pairs(pair_label)
    ends = [_places(pairs[:, side], known, tid_mid, pair_label) for side in (0, 1)]
    labels = pairs[:, 2]
    if labels.min() < 0 or labels.max() > 1:
        raise UserError(f"{pair_label}: labels must be 0 or 1")
    entries = list(used)
    return TemplateSet(
        name, [entry.location for entry in entries], lambda index: images.read(entries[index]),
        image, template, medium, *ends, labels == 1, flip, points,
    )


def _places(numbers: NDArray[np.int32], known: NDArray, tid_mid: Path, pair_label: Path) -> NDArray[np.int32]:
    """Return the place of every template number among the sorted known ones."""
    places = np.empty(len(numbers), np.int32)
    num_unknown, first = 0, None
    for start in range(0, len(numbers), _PAIRS_AT_ONCE):
        part = numbers[start : start + _PAIRS_AT_ONCE]
        found = np.searchsorted(known, part).clip(max=len(known) - 1)
        unknown = part[known[found] != part]
        num_unknown, first = num_unknown + len(unknown), unknown[0] if len(unknown) and first is None else first
        places[start : start + len(part)] = found
    if num_unknown:
        raise UserError(f"{pair_label} names {num_unknown} templates that {tid_mid} lacks, one is {first}")
    return places


def _read_pairs(path: Path) -> NDArray[np.int32]:
    """Return the (P, 3) numbers of a list of pairs of templates; IJB-C has 15.7 million."""
    expected = "template template label"
    try:
        opened = open_input(path, expected=f"a list of `{expected}`")
        with io.TextIOWrapper(opened, encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")
            pairs = np.loadtxt(file, dtype=np.int32, comments=None, ndmin=2)
    except (ValueError, OSError) as error:
        reason: Exception | None = error
    else:
        if len(pairs) and pairs.shape[1] == 3:
            return pairs
        reason = None
    for number, fields in _rows(path, expected):  # slower, and knows the line
        _whole(fields, path, number)
    raise UserError(f"{path}: lines `{expected}` were expected: {reason}")


def _rows(path: Path, expected: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the three fields of every line that is not empty."""
    is_empty = True
    for number, line in enumerate(read_lines(path, f"a list of `{expected}`"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise UserError(f"{path} line {number}: {' '.join(fields)[:80]!r}; lines `{expected}` were expected")
        is_empty = False
        yield number, fields
    if is_empty:
        raise UserError(f"{path} is empty; lines `{expected}` were expected")


def _whole(fields: list[str], path: Path, number: int) -> tuple[int, ...]:
    if not all(is_count(field.removeprefix("-")) for field in fields):
        raise UserError(f"{path} line {number}: whole numbers were expected, found {' '.join(fields)[:80]!r}")
    return tuple(int(field) for field in fields)
