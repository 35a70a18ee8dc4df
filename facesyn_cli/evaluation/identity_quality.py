"""Distinctness and consistency of identities: metrics of DCFace, IDiff-Face, Vec2Face and VIGFace.

With unit embeddings f, unit class centers c (mean of the unit embeddings of an identity, normalized) and C
identities:

    U_class(r) = |U| / C,  U = { c_i : cos(c_i, c_j) < r  for all j < i with c_j in U }     (DCFace, 2304.07060)
    C_intra(r) = mean over identities of the share of images with cos(f, own c) > r         (DCFace)
    separate(r) = share of identities whose center has cos <= r to every other center       (Vec2Face, r = 0.40)
    consistency = mean over identities of the mean of cos(f, f') over its pairs             (VIGFace, 2403.08277)
    separability = mean over identities of the mean of 1 - cos(c, c') over other centers    (VIGFace)

The paper of DCFace mixes distance and similarity in its text; these are the forms with cosines, a match being a
cosine above r. Scores of pairs: `score_counts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import DCFACE, IDIFF, ISO, VEC2FACE, VIGFACE, Metric, declare
from facesyn_cli.evaluation.nearest import nearest
from facesyn_cli.evaluation.score_counts import (
    GRID,
    NUM_BINS,
    STEP,
    ScoreCounts,
    discriminability,
    equal_error_rate,
    error_rates,
    moments_of,
    non_match_at,
)
from facesyn_cli.evaluation.section import BOOTSTRAP, Curve, Figure, Histogram, Row, Section, mean_over_identities

VEC2FACE_THRESHOLD = 0.40
_HISTOGRAM_BINS = 100
_LISTED = 24

KeepUnique = Callable[[NDArray[np.float32]], NDArray[np.bool_]]

declare(
    Metric("identity.genuine_mean", "Genuine mean", "Mean score of two images with the same label.",
        formula="mean of cos(e_i, e_j) over pairs with one label", source=IDIFF, better="higher", unit="cosine"),
    Metric("identity.impostor_mean", "Impostor mean", "Mean score of two images with different labels.",
        formula="mean of cos(e_i, e_j) over pairs with two labels", source=IDIFF, better="lower", unit="cosine"),
    Metric("identity.eer", "Equal error rate", "Share of wrong decisions at the threshold where different people are "
        "accepted as often as the same person is rejected.", formula="(FMR(t) + FNMR(t)) / 2 at the t with the least "
        "|FMR(t) - FNMR(t)|", source=IDIFF, better="lower", unit="share", headline=10, by_group="table"),
    Metric("identity.fmr100", "FMR100", "Share of same-person pairs rejected when 1 % of different-person pairs are "
        "accepted.", formula="FNMR(t) at the t with FMR(t) closest to 1 %", source=IDIFF, better="lower",
        unit="share"),
    Metric("identity.fmr1000", "FMR1000", "Share of same-person pairs rejected when 0.1 % of different-person pairs "
        "are accepted.", formula="FNMR(t) at the t with FMR(t) closest to 0.1 %", source=IDIFF, better="lower",
        unit="share"),
    Metric("identity.fdr", "Fisher discriminant ratio", "Distance of genuine and impostor scores, relative to "
        "their spread.", formula="(mean_G - mean_I)^2 / (var_G + var_I)", source=IDIFF, better="higher", headline=40),
    Metric("identity.dprime", "d-prime", "Distance of genuine and impostor scores in units of their common standard "
        "deviation.", formula="|mean_G - mean_I| / sqrt((var_G + var_I) / 2)", source=IDIFF, better="higher"),
    Metric("identity.unique_share", "Unique identities (U_class)", "Share of identities left when every one too "
        "close to an earlier one is dropped: different people per identity claimed.",
        formula="|U| / C; class centers in order, c joins U when cos(c, u) < r for every u in U", source=DCFACE,
        better="higher", unit="share", headline=20, by_group="table"),
    Metric("identity.unique_040", "Unique identities at 0.40", "The same at the fixed threshold that Vec2Face "
        "publishes.", formula="|U| / C; c joins U when cos(c, u) < 0.40 for every u in U", source=VEC2FACE,
        better="higher", unit="share"),
    Metric("identity.separate_040", "Separate identities at 0.40", "Share of identities that no other identity comes "
        "close to.", formula="share of centers c with max over others of cos(c, c') <= 0.40", source=VEC2FACE,
        better="higher", unit="share"),
    Metric("identity.consistent_share", "Consistent images (C_intra)", "Share of images that show the person their "
        "label says, averaged over identities. Too close to 100 % means that the images of a person vary little.",
        formula="mean over classes of the share of images with cos(e, center) > r", source=DCFACE, better="higher",
        unit="share", headline=30),
    Metric("identity.consistency", "Consistency", "Mean score of two images of one identity, averaged over "
        "identities.", formula="mean over identities of the mean of cos(e_i, e_j) inside each", source=VIGFACE,
        better="higher", unit="cosine", by_group="chart"),
    Metric("identity.separability", "Separability", "Mean distance of an identity's center to the centers of the "
        "others.", formula="mean over pairs of classes of 1 - cos(c, c')", source=VIGFACE, better="higher"),
    Metric("identity.real_eer", "Equal error rate of the reference", "The same for the real images of the reference, "
        "by the same judge: the value to compare with.", formula="equal error rate of the reference", unit="share"),
    Metric("identity.real_fdr", "Fisher discriminant ratio of the reference", "The same for the real images of the "
        "reference, by the same judge: the value to compare with.",
        formula="Fisher discriminant ratio of the reference"),
    Metric("identity.real_unique_share", "Unique identities of the reference", "The same for as many real people of "
        "the reference: the value to compare with. Differs from 100 % where the judge takes two people for one.",
        formula="U_class of the first C identities of the reference", unit="share"),
    Metric("identity.fidelity", "Identity fidelity", "How similar images that were drawn from the embedding of a real "
        "photo are to the other photos of that person in the reference.", formula="mean over identities of the mean "
        "of cos(e, f) over its images e and the other photos f of the person", better="higher", unit="cosine"),
    Metric("identity.real_fidelity", "Identity fidelity of the photos", "How similar the photos from which identities "
        "were drawn are to the other photos of the same people: the value to compare with.", formula="mean over "
        "identities of the mean of cos(p, f) over the other photos f of the person on the photo p", unit="cosine"),
    Metric("identity.scores", "Genuine and impostor scores", "How similar two images of one person are, and two "
        "images of different people. The less the two distributions overlap, the better the labels can be learned."),
    Metric("identity.nearest_center", "Nearest other identity", "For every identity, the score of the most similar "
        "other one. A peak on the right indicates people who were generated twice."),
    Metric("identity.det", "Detection error trade-off", "Both kinds of error at every threshold; the closer to the "
        "lower left corner, the better.", formula="FMR(t) = share of impostor scores >= t; FNMR(t) = share of "
        "genuine scores < t", source=ISO),
    Metric("identity.roc", "Receiver operating characteristic", "Share of same-person pairs accepted against the "
        "share of different-person pairs accepted.", formula="TMR(t) = 1 - FNMR(t) against FMR(t)", source=ISO),
    Metric("identity.unique_by_count", "Unique identities by size", "How the share of unique identities falls as the "
        "set grows, up to where the source of identities is exhausted.", formula="U_class of the first n identities",
        source=DCFACE),
    Metric("identity.best", "Most typical images", "Images closest to the center of their identity.", show="sheet"),
    Metric("identity.worst", "Least typical images", "Images farthest from the center of their identity: bad "
        "pictures, odd poses or wrong labels.", show="sheet"),
)


def score_section(counts: ScoreCounts) -> Section:
    """Return the figures, histogram and curves of genuine and impostor scores."""
    section = Section()
    mean_genuine, _, mean_impostor, _ = counts.moments
    section.figures += [
        Figure("identity.genuine_mean", mean_genuine, counts.num_genuine, "genuine pairs",
               error=counts.error_of(lambda g, i: moments_of(g)[0]), error_from=BOOTSTRAP),
        Figure("identity.impostor_mean", mean_impostor, counts.num_impostor, "impostor pairs",
               error=counts.error_of(lambda g, i: moments_of(i)[0]), error_from=BOOTSTRAP),
        _rate("identity.eer", counts, equal_error_rate),
        _rate("identity.fmr100", counts, lambda g, i: non_match_at(g, i, 1e-2)),
        _rate("identity.fmr1000", counts, lambda g, i: non_match_at(g, i, 1e-3)),
    ]
    for place, name in enumerate(("fdr", "dprime")):
        value = discriminability(counts.moments)[place]

        def figure(g: NDArray, i: NDArray, place: int = place) -> float:
            return discriminability((*moments_of(g), *moments_of(i)))[place]

        section.figures.append(Figure(
            f"identity.{name}", value, counts.num_genuine, "genuine pairs, and all impostor pairs",
            error=counts.error_of(figure), error_from=BOOTSTRAP,
        ))
    if not counts.impostor_exact:
        section.notes.append(
            f"Impostor scores were counted on a random sample of images ({counts.num_impostor:,} pairs); means, FDR "
            "and d' are of all pairs."
        )
    section.histograms.append(_score_histogram(counts))
    section.curves += _error_curves(counts)
    return section


def fidelity_section(own: LabeledEmbeddings, reference: LabeledEmbeddings, photos: Mapping[str, str]) -> Section:
    """Compare identities that were drawn from the embedding of a photo with the other photos of that person.

    The photo itself shares pose, light and expression with its embedding, so it is not compared.

    Args:
        own: The set.
        reference: Real photos.
        photos: Key of the photo of an identity, where it was drawn from one.

    Returns:
        The fidelity of the set and that of the photos; nothing where no identity has a photo in the reference.
    """
    row_of = {key: row for row, key in enumerate(reference.keys)}
    own_means, photo_means, num_known = [], [], 0
    for identity, name in enumerate(own.identities):
        row = row_of.get(photos.get(name, ""))
        if row is None:
            continue
        num_known += 1
        person = reference.owner[row]
        count = reference.sizes[person] - 1
        if not count:
            continue
        others = (reference.sums[person] - reference.vectors[row]) / count
        own_means.append(float(own.sums[identity] / own.sizes[identity] @ others))
        photo_means.append(float(reference.vectors[row] @ others))
    if not num_known:
        return Section()
    of = "identities whose person has another photo"
    section = Section([mean_over_identities("identity.fidelity", own_means, of),
                       mean_over_identities("identity.real_fidelity", photo_means, of)])
    if num_known > len(own_means):
        section.notes.append(f"Identity fidelity leaves out {num_known - len(own_means):,} of {num_known:,} identities "
                             "drawn from a photo of the reference: the reference has no other photo of the person.")
    return section


def reference_section(
    training: LabeledEmbeddings, counts: ScoreCounts, num_identities: int, r: float, keep: KeepUnique
) -> Section:
    """Return the figures of the reference that those of a set are compared with.

    Args:
        training: The reference.
        counts: Its scores.
        num_identities: Identities of the set; the share of unique ones falls as sets grow, so that of the reference is
            of as many, or of all where there are fewer.
        r: See `center_section`.
        keep: Greedy choice of unique centers at r.
    """
    unique = mean_over_identities("identity.real_unique_share", keep(training.centers[:num_identities]))
    error = counts.error_of(lambda g, i: discriminability((*moments_of(g), *moments_of(i)))[0])
    return Section([
        _rate("identity.real_eer", counts, equal_error_rate),
        Figure("identity.real_fdr", discriminability(counts.moments)[0], counts.num_genuine,
               "genuine pairs, and all impostor pairs", error=error, error_from=BOOTSTRAP),
        replace(unique, threshold=r),
    ])


def center_section(rows: LabeledEmbeddings, r: float, keep: dict[float, KeepUnique]) -> Section:
    """Return the figures of class centers (unique, consistent, separate) and the most and least typical images.

    Args:
        rows: The set.
        r: Cosine above which two embeddings match (DCFace: 0.3 with its own recognizer).
        keep: For r and 0.40, the greedy choice of unique centers: (C, D) -> (C,) bool.
    """
    section = Section()
    num_identities = len(rows.identities)
    if num_identities == 0:
        return section
    kept = {radius: choose(rows.centers) for radius, choose in keep.items()}
    other, _ = nearest(rows.centers, rows.centers, np.arange(num_identities), np.arange(num_identities))
    consistent = np.add.reduceat((rows.to_center > r).astype(np.float64), rows.starts[:-1]) / rows.sizes
    section.figures += [replace(mean_over_identities(name, values), threshold=at) for name, values, at in (
        ("identity.unique_share", kept[r], r),
        ("identity.unique_040", kept[VEC2FACE_THRESHOLD], VEC2FACE_THRESHOLD),
        ("identity.separate_040", other <= VEC2FACE_THRESHOLD, VEC2FACE_THRESHOLD),
        ("identity.consistent_share", consistent, r),
    )]
    several = "identities with several images"
    section.figures.append(mean_over_identities("identity.consistency", mean_genuine(rows), several))
    if num_identities > 1:
        total = rows.centers.sum(axis=0, dtype=np.float64)
        lengths = np.square(rows.centers.astype(np.float64)).sum(1)
        separability = 1 - (rows.centers @ total - lengths) / (num_identities - 1)
        section.figures.append(mean_over_identities("identity.separability", separability))
        edges = np.linspace(-1, 1, _HISTOGRAM_BINS + 1)
        section.histograms.append(Histogram(
            "identity.nearest_center", "cosine to the nearest other center", edges,
            {"identities": np.histogram(np.clip(other, -1, 1), edges)[0]}, [(r, f"r = {r:g}")],
        ))
    n = np.median(rows.sizes)
    if r > 0 and n * r**2 <= 1:
        section.notes.append(
            "Consistent images are not informative here. An identity's center includes the image itself, so each of n "
            f"unrelated images has a cosine of about 1 / sqrt(n) to their center: {1 / np.sqrt(n):.2f} "
            f"for the usual {n:g} images, which is more than r = {r:g}. Use consistency and wrong labels instead."
        )
    section.curves.append(_unique_by_count(kept))
    section.lists.update(_extremes(rows))
    return section


def mean_genuine(rows: LabeledEmbeddings) -> NDArray[np.float64]:
    """Return the mean score of all pairs inside each identity (VIGFace's consistency); (C,), NaN for one image."""
    norms = np.add.reduceat(rows.squares, rows.starts[:-1])
    n = rows.sizes.astype(np.float64)
    total = np.square(rows.sums).sum(1) - norms
    return np.where(n > 1, total / np.maximum(n * (n - 1), 1), np.nan)


def loo_cosines(rows: LabeledEmbeddings) -> NDArray[np.float64]:
    """Return the cosine of each image to the center of the other images of its identity; NaN for a lone image.

    Returns:
        (N,).
    """
    lengths_square = np.square(rows.sums).sum(1)[rows.owner]                   # |s|^2
    rest = np.sqrt(np.maximum(lengths_square - 2 * rows.sum_products + rows.squares, 1e-12))  # |s - f|
    cosines = (rows.sum_products - rows.squares) / rest
    return np.where(rows.sizes[rows.owner] > 1, np.clip(cosines, -1, 1), np.nan)


def _rate(name: str, counts: ScoreCounts, of: Callable[[NDArray, NDArray], tuple[float, int] | None]) -> Figure:
    found = of(counts.genuine, counts.impostor)

    def value(genuine: NDArray, impostor: NDArray) -> float | None:
        again = of(genuine, impostor)
        return None if again is None else again[0]

    return Figure(
        name, found[0] if found else None, counts.num_genuine + counts.num_impostor, "genuine and impostor pairs",
        exact=counts.impostor_exact and counts.genuine_exact,
        error=counts.error_of(value) if found else None, error_from=BOOTSTRAP,
        threshold=found[1] * STEP - 1 if found else None,
    )


def _score_histogram(counts: ScoreCounts) -> Histogram:
    """Return both kinds of scores over 100 bins of width 0.02."""
    edges = np.linspace(-1, 1, _HISTOGRAM_BINS + 1)
    place = np.minimum(((GRID + 1) * _HISTOGRAM_BINS / 2 + 1e-6).astype(int), _HISTOGRAM_BINS - 1)
    series = {
        name: np.bincount(place, weights=values, minlength=_HISTOGRAM_BINS)
        for name, values in (("genuine", counts.genuine), ("impostor", counts.impostor))
    }
    marks = [
        (at, f"FMR {label}") for rate, label in ((1e-2, "1 %"), (1e-3, "0.1 %"))
        if (at := counts.threshold_at(rate)) is not None
    ]
    return Histogram("identity.scores", "cosine of a pair", edges, series, marks,
                     counts.genuine_exact and counts.impostor_exact)


def _error_curves(counts: ScoreCounts) -> list[Curve]:
    if not counts.num_genuine or not counts.num_impostor:
        return []
    false_match, false_non_match = error_rates(counts.genuine, counts.impostor)
    lowest = max(1 / counts.num_impostor, 1e-7)  # a single impostor pair
    at = np.unique(np.searchsorted(-false_match, -np.geomspace(1, lowest, 200)))
    at = at[(at <= NUM_BINS) & (false_match[np.minimum(at, NUM_BINS)] > 0)]
    x, y = false_match[at], false_non_match[at]
    return [
        Curve("identity.det", "FMR", "FNMR", {"scores": (x[y > 0], y[y > 0])}, "log", "log"),
        Curve("identity.roc", "FMR", "TMR", {"scores": (x, 1 - y)}, "log", "linear"),
    ]


def _unique_by_count(kept: dict[float, NDArray[np.bool_]]) -> Curve:
    """Share of unique identities among the first n, for n on a logarithmic scale."""
    series = {}
    for radius, is_kept in kept.items():
        n = np.unique(np.geomspace(1, len(is_kept), 60).round().astype(int))
        series[f"r = {radius:g}"] = (n, np.cumsum(is_kept)[n - 1] / n)
    return Curve("identity.unique_by_count", "number of identities", "unique share", series, x_scale="log")


def _extremes(rows: LabeledEmbeddings) -> dict[str, list[Row]]:
    """Return the images most and least similar to the other images of their identity, one per identity."""
    cosines = loo_cosines(rows)
    known = np.flatnonzero(np.isfinite(cosines))
    lists = {}
    for name, order in (
        ("identity.best", known[np.argsort(-cosines[known], kind="stable")]),
        ("identity.worst", known[np.argsort(cosines[known], kind="stable")]),
    ):
        _, first = np.unique(rows.owner[order], return_index=True)
        lists[name] = [
            Row([rows.image(row)], [rows.identity_of(row)], float(cosines[row]))
            for row in order[np.sort(first)][:_LISTED]
        ]
    return lists
