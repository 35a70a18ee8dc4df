"""Does a set give away the people its generator was trained on?

For every image, and every class center, of the set: the nearest training image and the nearest training center by
cosine. What counts as near is measured, not assumed: thresholds are those at which 1e-4 and 1e-5 of all pairs of
images of different real training people match with the same judge, and the distribution is laid beside that of real
people: each training image (center) against the nearest one of any other training person, in a gallery of the same
size. A set to the right of that curve is nearer to training people than strangers are (cf. arXiv:2410.24015, which
found leakage in all of six published sets by looking at the top pairs).

An image that is as near to a training image as two photos of one person usually are (the median genuine score of
the training set) shows that person, whatever the share of such images.

Copies are then told from mere likeness by their pixels (`thumbnails.py`): all pictures by thumbnail, and the
images nearest by cosine also against mirrored and cropped versions of the photos of that person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.figures import SPREAD, Curve, Figure, Finding, Histogram, Row, Section, clustered_error
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.nearest import nearest
from facesyn_cli.evaluation.score_counts import GRID, ScoreCounts
from facesyn_cli.evaluation.thumbnails import COPY, NEAR_DUPLICATE, descriptors, likeness, mirror

REFERENCE = "reference"                     # name of the training set in lists of images
PERCENTILES = (("p50", 50.0), ("p95", 95.0), ("p99", 99.0), ("p999", 99.9))
RATES = (1e-4, 1e-5)
RATE_NAMES = {"fmr1e-4": "0.01 %", "fmr1e-5": "0.001 %"}
FIXED = (0.30, 0.40)
_MAX_COMPARED = 500                         # images whose pixels are compared with all crops
_PHOTOS = 4                                 # of the nearest person, which are compared
_LISTED = 24
_CLEAR = 3                                  # standard errors by which a set must be nearer than strangers are
LIMITS = (
    "A judge sees what it was trained to see: a person may be recognizable to people, or to another network, where "
    "this judge finds nothing. Only the given reference was compared; other training data, also of the judge and of "
    "the conditioning network, were not. Copies cropped so that the face sits elsewhere, and the judge takes it for "
    "somebody else, or changed in other ways may be missed."
)

Pixels = Callable[[str, str], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class FaceSet:
    """A set as the leakage check sees it.

    Args:
        name: Its name in lists of images.
        rows: Embeddings.
        thumbnails: (N, 16, 16) gray values, row by row.
    """

    name: str
    rows: LabeledEmbeddings
    thumbnails: NDArray[np.uint8]


@dataclass(frozen=True)
class _Near:
    """For each query: the nearest one of a gallery."""

    cosines: NDArray[np.float32]
    where: NDArray[np.int64]
    queries: NDArray[np.int64]
    owner: NDArray[np.int64]
    is_exact: bool


def privacy_section(
    own: FaceSet, training: FaceSet, real: ScoreCounts, pixels: Pixels, max_pairs: int, seed: int
) -> Section:
    """Return the leakage figures of a set against training images.

    Args:
        own: The set.
        training: What the generator was trained on; its name is `REFERENCE`.
        real: Scores of the training set, to calibrate thresholds.
        pixels: (name of the set, key) -> (H, W, 3) uint8, or None where it cannot be read.
        max_pairs: Products to compute at most for one figure; beyond, images are drawn at random.
        seed: Seed of that.
    """
    sample = _Sample(max_pairs, seed)
    ours, theirs = own.rows, training.rows
    everyone, people = np.arange(len(ours.identities)), np.arange(len(theirs.identities))
    images = sample.near(ours.vectors, ours.owner, theirs.vectors)
    centers = sample.near(ours.centers, everyone, theirs.centers)
    strangers = sample.near(theirs.vectors, theirs.owner, theirs.vectors, theirs.owner)
    real_centers = sample.near(theirs.centers, people, theirs.centers, people)

    section = Section()
    thresholds = {name: real.threshold_at(rate) for name, rate in zip(RATE_NAMES, RATES, strict=True)}
    limits = {f"{int(100 * at):03d}": at for at in FIXED} | thresholds | {"genuine": _median(real.genuine)}
    for name, near, of in (
        ("image", images, "images"), ("center", centers, "identities"), ("real", strangers, "training images"),
        ("image-to-center", sample.near(ours.vectors, ours.owner, theirs.centers), "images"),
        ("center-to-image", sample.near(ours.centers, everyone, theirs.vectors), "identities"),
        ("real-to-center", sample.near(theirs.vectors, theirs.owner, theirs.centers, people), "training images"),
        ("real-center", real_centers, "training identities"),
    ):
        section.figures += _percentile_figures(name, near, of) + _share_figures(name, near, of, limits)
    series = {"images": images.cosines, "centers": centers.cosines, "real strangers": strangers.cosines,
              "real strangers, centers": real_centers.cosines}
    section.histograms.append(_histogram(series, thresholds, images.is_exact and strangers.is_exact))
    section.curves.append(_survival(series))
    for name, value in thresholds.items():
        if value is None:
            section.notes.append(f"The reference has too few impostor pairs for a threshold at FMR {RATE_NAMES[name]}.")
    copies = _find_copies(own, training, images, pixels, thresholds, sample)
    section.merge(copies)
    section.lists["privacy.top_pairs"] = _top_pairs(own, training, images, pixels)
    _judge(section, images, strangers, thresholds)
    return section


def _median(counts: NDArray) -> float | None:
    """Return the score that half of the counted ones reach; None where nothing was counted."""
    return float(GRID[np.searchsorted(np.cumsum(counts), counts.sum() / 2)]) if counts.sum() else None


@dataclass(frozen=True)
class _Sample:
    """Which queries are compared with a gallery: all where that is no more than `max_pairs` products, else some."""

    max_pairs: int
    seed: int

    def near(
        self, rows: NDArray[np.float32], owner: NDArray, gallery: NDArray[np.float32],
        gallery_owner: NDArray | None = None,
    ) -> _Near:
        """Return the nearest row of a gallery; with the gallery's owners, of anybody else."""
        queries, is_exact = self.of(len(rows), len(gallery))
        owners = (owner[queries], gallery_owner) if gallery_owner is not None else (None, None)
        cosines, where = nearest(rows[queries], gallery, *owners)
        return _Near(cosines, where, queries, owner[queries], is_exact)

    def of(self, size: int, gallery: int) -> tuple[NDArray[np.int64], bool]:
        """Return which of `size` queries to compare with a gallery, and whether that is all of them."""
        most = max(1, self.max_pairs // max(gallery, 1))
        if size <= most:
            return np.arange(size), True
        return np.sort(np.random.default_rng(self.seed).choice(size, most, replace=False)), False


def _percentile_figures(name: str, near: _Near, of: str) -> list[Figure]:
    values = near.cosines[np.isfinite(near.cosines)]
    found = [(label, float(np.percentile(values, q)) if len(values) else None) for label, q in PERCENTILES]
    found.append(("max", float(values.max()) if len(values) else None))
    return [
        Figure(f"privacy.{name}_{label}", value, len(values), of, "cosine", near.is_exact) for label, value in found
    ]


def _share_figures(name: str, near: _Near, of: str, limits: dict[str, float | None]) -> list[Figure]:
    figures = []
    for label, limit in limits.items():
        is_above = near.cosines >= limit if limit is not None else np.empty(0)
        figures.append(Figure(
            f"privacy.{name}_above_{label}", float(is_above.mean()) if len(is_above) else None, len(near.cosines), of,
            "share", near.is_exact, clustered_error(is_above, near.owner) if len(is_above) else None, SPREAD, limit,
        ))
    return figures


def _histogram(series: dict[str, NDArray], thresholds: dict[str, float | None], is_exact: bool) -> Histogram:
    edges = np.linspace(-1, 1, 101)
    counts = {
        name: np.histogram(np.clip(values[np.isfinite(values)], -1, 1), edges)[0] for name, values in series.items()
    }
    marks = [(value, f"FMR {RATE_NAMES[name]}") for name, value in thresholds.items() if value is not None]
    return Histogram("privacy.nearest", "cosine to the nearest training face", edges, counts, marks, is_exact)


def _survival(series: dict[str, NDArray]) -> Curve:
    """Share of queries whose nearest training face has at least cosine x, for the shares that are not 0."""
    lines = {}
    x = np.linspace(-0.2, 1, 121)
    for name, values in series.items():
        values = np.sort(values[np.isfinite(values)])
        if not len(values):
            continue
        share = 1 - np.searchsorted(values, x, side="left") / len(values)
        lines[name] = (x[share > 0], share[share > 0])
    return Curve("privacy.nearest_curve", "cosine", "share with a nearer training face", lines, y_scale="log")


def _find_copies(
    own: FaceSet, training: FaceSet, images: _Near, pixels: Pixels, thresholds: dict[str, float | None],
    sample: _Sample,
) -> Section:
    """Find copies among the images compared: by thumbnail, then by the pixels of the pairs nearest by cosine."""
    ours, theirs = descriptors(own.thumbnails), descriptors(training.thumbnails)
    queries, is_exact = sample.of(len(ours), 2 * len(theirs))
    found: dict[int, tuple[float, str, int]] = {}                              # row -> likeness, what, training row
    for rows, what in ((ours[queries], ""), (mirror(ours[queries]), "mirrored")):
        value, where = nearest(rows, theirs)
        for k in np.flatnonzero(value >= NEAR_DUPLICATE):
            if value[k] > found.get(int(queries[k]), (-1.0, "", 0))[0]:
                found[int(queries[k])] = (float(value[k]), what, int(where[k]))
    lowest = next((value for value in thresholds.values() if value is not None), FIXED[0])
    looked = set(queries.tolist())
    order = np.argsort(-images.cosines, kind="stable")
    near = [k for k in order if images.cosines[k] >= lowest and int(images.queries[k]) not in found]
    for k in near[:_MAX_COMPARED]:
        signals.check()
        row = int(images.queries[k])
        for source in _photos_of(training, int(images.where[k]), own.rows.vectors[row]):
            alike = _likeness(own, row, training, source, pixels)
            if alike is not None and alike[0] >= COPY:
                found[row] = (*alike, source)
                looked.add(row)
                break
    count = len(found)
    is_copy = np.array([row in found for row in sorted(looked)], dtype=float)
    owner = own.rows.owner[sorted(looked)]
    section = Section([
        Figure("privacy.copies", count, len(looked), "images", "count", is_exact),
        Figure("privacy.copied_share", count / max(len(looked), 1), len(looked), "images", "share", is_exact,
               clustered_error(is_copy, owner) if count else None, SPREAD),
    ])
    section.lists["privacy.copies"] = [
        Row(
            [(own.name, own.rows.keys[row]), (training.name, training.rows.keys[theirs_row])],
            [_name_of(own, row), _name_of(training, theirs_row)],
            float(own.rows.vectors[row] @ training.rows.vectors[theirs_row]), value,
            f"copy, {what}" if what else "copy",
        )
        for row, (value, what, theirs_row) in sorted(found.items(), key=lambda item: -item[1][0])[:4 * _LISTED]
    ]
    if len(near) > _MAX_COMPARED:
        section.notes.append(
            f"{len(near):,} images lie above the threshold; the {_MAX_COMPARED} nearest were compared pixel by pixel "
            "with mirrored and cropped training images, all others by thumbnail only."
        )
    return section


def _photos_of(training: FaceSet, row: int, vector: NDArray[np.float32]) -> list[int]:
    """Rows of the person of a training image, the nearest to a vector first: a crop may be nearer to another photo."""
    part = training.rows.rows_of(int(training.rows.owner[row]))
    order = np.argsort(-(training.rows.vectors[part] @ vector), kind="stable")
    return [part.start + int(place) for place in order[:_PHOTOS]]


def _top_pairs(own: FaceSet, training: FaceSet, images: _Near, pixels: Pixels) -> list[Row]:
    """The nearest pairs, at most one of each identity of the set."""
    order = np.argsort(-images.cosines, kind="stable")
    _, first = np.unique(images.owner[order], return_index=True)
    rows = []
    for k in order[np.sort(first)][:_LISTED]:
        signals.check()
        row, where = int(images.queries[k]), int(images.where[k])
        alike = _likeness(own, row, training, where, pixels)
        label = "" if alike is None or alike[0] < COPY else f"copy, {alike[1]}" if alike[1] else "copy"
        rows.append(Row(
            [(own.name, own.rows.keys[row]), (training.name, training.rows.keys[where])],
            [_name_of(own, row), _name_of(training, where)], float(images.cosines[k]),
            None if alike is None else alike[0], label,
        ))
    return rows


def _likeness(own: FaceSet, row: int, training: FaceSet, where: int, pixels: Pixels) -> tuple[float, str] | None:
    first = pixels(own.name, own.rows.keys[row])
    second = pixels(training.name, training.rows.keys[where])
    return None if first is None or second is None else likeness(first, second)


def _judge(section: Section, images: _Near, strangers: _Near, thresholds: dict[str, float | None]) -> None:
    """Put the figures into words: copies, then identities nearer than strangers, then nothing found."""
    copies = int(section.value("privacy.copies") or 0)
    share = section.value("privacy.copied_share") or 0.0
    name = next((name for name, value in thresholds.items() if value is not None), None)
    text, level, lists = "", "good", []
    if copies:
        level, lists = "fault", ["privacy.copies"]
        text = f"{copies:,} images ({share:.2%} of those compared) are copies of training images. "
    if name is None:
        text += "The reference is too small to say which cosine real strangers reach, so nearness was not judged."
        level = "fault" if copies else "note"
    else:
        ours, theirs = (section.value(f"privacy.{kind}_above_{name}") or 0.0 for kind in ("image", "real"))
        errors = [
            clustered_error(near.cosines >= thresholds[name], near.owner) or 0.0 for near in (images, strangers)
        ]
        is_nearer = ours - theirs > _CLEAR * float(np.hypot(*errors)) and ours > 0
        figures = f"{ours:.1%} of the images have a training face above the threshold at FMR {RATE_NAMES[name]}, " \
                  f"{theirs:.1%} of real strangers do"
        if is_nearer:
            level, lists = ("fault" if copies else "warning"), [*lists, "privacy.top_pairs"]
            text += f"The set lies nearer to the training people than real strangers do: {figures}."
        else:
            text += f"{'As a whole, the' if copies else 'No copy was found, and as a whole the'} set lies no nearer " \
                    f"to the training people than real strangers do: {figures}."
    same = round(len(images.cosines) * (section.value("privacy.image_above_genuine") or 0.0))
    if same > copies:
        level = level if level == "fault" else "warning"
        lists = list(dict.fromkeys([*lists, "privacy.top_pairs"]))
        text += f" {same:,} images are as near to a training image as two photos of one person are to each " \
                "other: look at the top pairs."
    section.verdict = {"level": level, "text": text, "limits": LIMITS}
    section.findings.append(Finding(
        level, text, ["privacy.copies"] + ([f"privacy.image_above_{name}"] if name else []), lists
    ))


def _name_of(faces: FaceSet, row: int) -> str:
    return faces.rows.identities[faces.rows.owner[row]]
