"""Leakage of training identities: how near a set comes to the people that its generator was trained on.

For every image, and every class center, of the set: the nearest training image and the nearest training center by
cosine. Thresholds are calibrated with the same judge: those at which 1e-4 and 1e-5 of all pairs of images of different
training people match. The baseline is real people: each training image (center) against the nearest one of any other
training person, in a gallery of the same size. A set to the right of that curve is nearer to training people than
strangers are (cf. arXiv:2410.24015, which found leakage in all of six published sets in the top pairs).

An image that is as near to a training image as two photos of one person usually are (the median genuine score of
the training set) shows that person, whatever the share of such images. Copies are found by their pixels, see
`copies.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.evaluation.copies import Pixels, find_copies, top_pairs
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import UNVEILING, Metric, declare
from facesyn_cli.evaluation.nearest import Near, Sample
from facesyn_cli.evaluation.score_counts import GRID, ScoreCounts
from facesyn_cli.evaluation.section import SPREAD, Curve, Figure, Finding, Histogram, Section, clustered_error

REFERENCE = "reference"                     # name of the training set in lists of images
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
RATES = {"fmr1e-4": 1e-4, "fmr1e-5": 1e-5}
RATE_NAMES = {"fmr1e-4": "0.01 %", "fmr1e-5": "0.001 %"}
FIXED = {"030": 0.30, "040": 0.40}
_CLEAR = 3                                  # standard errors by which a set must be nearer than strangers
LIMITS = (
    "The result depends on the judge: a person may be recognizable to people, or to another network, where this judge "
    "finds no match. Only the given reference was compared; other training data, also of the judge and of "
    "the conditioning network, were not. Copies may be missed that are changed in other ways, or cropped so that the "
    "judge matches the face with another person."
)

_STRANGERS = "among all other real people (what is normal between strangers)"
_FAMILIES = {  # queries: title, "Nearest training ...", gallery, column; in the order of the columns
    "image": ("Images", "image of every image of the set", "image", "Images"),
    "center-to-image": ("Identities to images", "image of the center of every identity of the set", "image",
                        "Identities"),
    "real": ("Real people", f"image of every real image {_STRANGERS}", "image", "Real strangers, to compare"),
    "image-to-center": ("Images to identities", "identity, its center, of every image of the set", "identity",
                        "Images"),
    "center": ("Identities", "identity, its center, of the center of every identity of the set", "identity",
               "Identities"),
    "real-to-center": ("Real people to identities", f"identity, its center, of every real image {_STRANGERS}",
                       "identity", "Real strangers, images"),
    "real-center": ("Real identities", f"identity, its center, of the center of every real person {_STRANGERS}",
                    "identity", "Real strangers, identities"),
}


def _declare_family(queries: str, title: str, nearest_what: str, gallery: str, column: str) -> None:
    """Declare the percentiles of the nearest scores of one kind of queries, and the shares above each threshold."""
    text, caption = f"Nearest training {nearest_what}", f"Score of the nearest training {gallery}"
    better = None if queries.startswith("real") else "lower"
    for label, q in PERCENTILES.items():
        declare(Metric(
            f"privacy.{queries}_{label}", f"{title}, {q:g} % below",
            f"{text}: the score that {q:g} % of them stay below.", f"percentile {q:g} of the nearest scores", UNVEILING,
            better, "cosine", cell=(caption, "Median" if q == 50 else f"{q:g} % are below", column),
        ))
    declare(Metric(
        f"privacy.{queries}_max", f"{title}, closest", f"{text}: the highest score of all.",
        "maximum of the nearest scores", UNVEILING, better, "cosine", cell=(caption, "Closest", column),
    ))
    limits = {label: (f"{at:.2f}", f"above {at:.2f}", "") for label, at in FIXED.items()}
    limits |= {label: (f"the threshold of FMR {rate}", f"above FMR {rate}",
                       ", calibrated on real impostor pairs of the same judge") for label, rate in RATE_NAMES.items()}
    limits["genuine"] = ("the median of two real photos of one person", "like two photos of one person", "")
    for label, (limit, row, calibrated) in limits.items():
        is_first = (queries, label) == ("image", "fmr1e-4")
        declare(Metric(
            f"privacy.{queries}_above_{label}", f"{title} above {limit}",
            f"{text}: the share with a score of at least {limit}{calibrated}.",
            "share with max over training faces of the cosine >= t", UNVEILING, better, "share",
            120 if is_first else 0, "table" if is_first else "", (caption, f"Share {row}", column),
        ))


declare(
    Metric("privacy.nearest", "Nearest training face", "For every image, the score of the most similar training "
        "face; and, to compare, the same of every real person with all other real people. A synthetic curve to the "
        "right of the real one indicates memorized people.", formula="max over training faces of the cosine",
        source=UNVEILING),
    Metric("privacy.nearest_curve", "Nearest training face, from above", "Share of images whose nearest training "
        "face has at least this score; and, to compare, the same of real people among strangers.",
        formula="share with max over training faces >= x", source=UNVEILING),
)
for _queries, _words in _FAMILIES.items():
    _declare_family(_queries, *_words)


def privacy_section(
    own: LabeledEmbeddings, training: LabeledEmbeddings, real: ScoreCounts, pixels: Pixels, max_pairs: int, seed: int
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
    sample = Sample(max_pairs, seed)
    everyone, people = np.arange(len(own.identities)), np.arange(len(training.identities))
    images = sample.near(own.vectors, own.owner, training.vectors)
    centers = sample.near(own.centers, everyone, training.centers)
    strangers = sample.near(training.vectors, training.owner, training.vectors, training.owner)
    real_centers = sample.near(training.centers, people, training.centers, people)

    section = Section()
    thresholds = {name: real.threshold_at(rate) for name, rate in RATES.items()}
    limits = FIXED | thresholds | {"genuine": _median(real.genuine)}
    for name, near, of in (
        ("image", images, "images"), ("center", centers, "identities"), ("real", strangers, "training images"),
        ("image-to-center", sample.near(own.vectors, own.owner, training.centers), "images"),
        ("center-to-image", sample.near(own.centers, everyone, training.vectors), "identities"),
        ("real-to-center", sample.near(training.vectors, training.owner, training.centers, people), "training images"),
        ("real-center", real_centers, "training identities"),
    ):
        section.figures += _near_figures(name, near, of, limits)
    series = {"images": images.cosines, "centers": centers.cosines, "real strangers": strangers.cosines,
              "real strangers, centers": real_centers.cosines}
    section.histograms.append(_histogram(series, thresholds, images.is_exact and strangers.is_exact))
    section.curves.append(_survival(series))
    for name, value in thresholds.items():
        if value is None:
            section.notes.append(f"The reference has too few impostor pairs for a threshold at FMR {RATE_NAMES[name]}.")
    copies = find_copies(own, training, images, pixels, thresholds, sample)
    section.merge(copies)
    section.lists["privacy.top_pairs"] = top_pairs(own, training, images, pixels)
    _decide(section, images, strangers, thresholds)
    return section


def _median(counts: NDArray) -> float | None:
    """Return the median of counted scores; None without a count."""
    return float(GRID[np.searchsorted(np.cumsum(counts), counts.sum() / 2)]) if counts.sum() else None


def _near_figures(name: str, near: Near, of: str, limits: dict[str, float | None]) -> list[Figure]:
    """Return the percentiles of the nearest scores, their maximum, and the shares of all that reach each limit."""
    values = near.cosines[np.isfinite(near.cosines)]
    figures = [
        Figure(f"privacy.{name}_{label}", float(np.percentile(values, q)) if len(values) else None, len(values), of,
               near.is_exact) for label, q in (PERCENTILES | {"max": 100.0}).items()
    ]
    for label, limit in limits.items():
        is_above = near.cosines >= limit if limit is not None else np.empty(0)
        figures.append(Figure(
            f"privacy.{name}_above_{label}", float(is_above.mean()) if len(is_above) else None, len(near.cosines), of,
            near.is_exact, clustered_error(is_above, near.owner) if len(is_above) else None, SPREAD, limit,
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


def _decide(section: Section, images: Near, strangers: Near, thresholds: dict[str, float | None]) -> None:
    """Set the verdict of a section and add it as a finding: copies, a set nearer than strangers, or neither."""
    copies = int(section.value("privacy.copies") or 0)
    share = section.value("privacy.copied_share") or 0.0
    name = next((name for name, value in thresholds.items() if value is not None), None)
    text, level, lists = "", "good", []
    if copies:
        level, lists = "fault", ["privacy.copies"]
        text = f"{copies:,} images ({share:.2%} of those compared) are copies of training images. "
    if name is None:
        text += "The reference is too small for a threshold of real strangers, so nearness was not evaluated."
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
            text += f"The set is nearer to the training people than real strangers are: {figures}."
        else:
            text += f"{'As a whole, the' if copies else 'No copy was found, and as a whole the'} set is no nearer " \
                    f"to the training people than real strangers are: {figures}."
    same = round(len(images.cosines) * (section.value("privacy.image_above_genuine") or 0.0))
    if same > copies:
        level = level if level == "fault" else "warning"
        lists = list(dict.fromkeys([*lists, "privacy.top_pairs"]))
        text += f" {same:,} images are as near to a training image as two photos of one person are to each " \
                "other: check the top pairs."
    section.verdict = {"level": level, "text": text, "limits": LIMITS}
    section.findings.append(Finding(
        level, text, ["privacy.copies"] + ([f"privacy.image_above_{name}"] if name else []), lists
    ))
