"""Diversity of a set: Vendi scores, and recall of real variation.

Face Vendi Score (VariFace, arXiv:2412.06235, after Friedman and Dieng 2023, arXiv:2210.02410): with K the n x n
matrix of cosines and l the eigenvalues of K / n,

    exp(-sum_i l_i ln l_i)        from 1 (all alike) to n (all orthogonal)

The non-zero eigenvalues of F F^T / n are those of F^T F / n, so it is exact for any number of images.

D_intra (DCFace, arXiv:2304.07060): mean over identities of the improved recall (Kynkaanniemi et al. 2019): the share
of real images whose style lies in a k-nearest-neighbor ball of the identity's images.
# Differs from DCFace: the space is not Inception's but the judge's with the identity taken away, f minus the mean
# embedding of its identity, times sqrt(n / (n - 1)) for the n images the mean was made of. In the judge's plain
# space no image of one person comes near images of others, and the recall is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import DCFACE, RECALL, VARIFACE, Metric, declare
from facesyn_cli.evaluation.section import (
    JACKKNIFE,
    Figure,
    Histogram,
    Row,
    Section,
    jackknife_error,
    mean_over_identities,
)
from facesyn_cli.evaluation.set_distance import recall_of_each

_GROUPS = 20                # of the jackknife
_RECALL_K = 3
_RECALL_REAL = 2000         # real images of D_intra
_RECALL_IDENTITIES = 500
_VENDI_IDENTITIES = 5000    # identities whose own score is computed
_LISTED = 24

declare(
    Metric("diversity.vendi", "Face Vendi Score", "Effective number of different faces among the images: 1 when all "
        "are alike, the number of images when all are unlike.", formula="exp(-sum l ln l), l the eigenvalues of K / "
        "n, K the cosines", source=VARIFACE, better="higher", headline=50),
    Metric("diversity.vendi_centers", "Vendi Score of the identities", "Effective number of different people: the "
        "same over class centers.", formula="exp(-sum l ln l), l the eigenvalues of K / C, K the cosines of class "
        "centers", source=VARIFACE, better="higher"),
    Metric("diversity.vendi_within", "Vendi Score within an identity", "Effective number of different images of one "
        "person, averaged over identities. It grows with wrong labels as well: compare the consistent images.",
        formula="mean over identities of exp(-sum l ln l)", source=VARIFACE, better="higher", by_group="chart"),
    Metric("diversity.d_intra", "Style coverage (D_intra)", "Share of real styles that the images of one person "
        "reach, averaged over identities. Images that do not show one person cover more: compare the "
        "consistency.", formula="per class: share of real features within the k-nearest-neighbor radius of a "
        "generated one", source=f"{DCFACE}; recall of {RECALL}", better="higher", unit="share", headline=60),
    Metric("diversity.within_spread", "Spread within an identity", "Mean distance of an image to the center of its "
        "identity.", formula="mean over identities of the mean of 1 - cos(e, center)"),
    Metric("diversity.vendi_per_identity", "Variety per identity", "Effective number of different images, of every "
        "identity."),
    Metric("diversity.least_varied", "Least varied identities", "Identities whose images are most alike."),
)


def vendi_section(rows: LabeledEmbeddings, seed: int) -> Section:
    """Return the Vendi scores of the whole set, of the centers, and inside identities."""
    num_rows, num_identities = len(rows.keys), len(rows.identities)
    group = rows.groups(_GROUPS, seed)
    section = Section([
        _vendi_figure("diversity.vendi", rows.vectors, group[rows.owner], num_rows, "images"),
        _vendi_figure("diversity.vendi_centers", rows.centers, group, num_identities, "identities"),
    ])
    several = np.flatnonzero(rows.sizes > 1)
    chosen = several
    if len(several) > _VENDI_IDENTITIES:
        chosen = np.sort(np.random.default_rng(seed).choice(several, _VENDI_IDENTITIES, replace=False))
    scores = np.array([vendi_score(rows.vectors[rows.rows_of(identity)]) for identity in chosen])
    is_exact = len(chosen) == len(several)
    section.figures.append(mean_over_identities(
        "diversity.vendi_within", scores, "identities with several images", exact=is_exact
    ))
    if not len(chosen):
        return section
    edges = np.linspace(1, max(float(scores.max()), 2.0), 41)
    section.histograms.append(Histogram(
        "diversity.vendi_per_identity", "Vendi score of an identity", edges,
        {"identities": np.histogram(scores, edges)[0]}, exact=is_exact,
    ))
    typical = chosen[rows.sizes[chosen] >= max(2, int(np.median(rows.sizes[chosen]) / 2))]
    place = {identity: score for identity, score in zip(chosen.tolist(), scores, strict=True)}
    least = sorted(typical.tolist(), key=lambda identity: place[identity])[:_LISTED // 2]
    section.lists["diversity.least_varied"] = [
        Row(rows.images_of(c, 8), [rows.identities[c]], label=f"Vendi score {place[c]:.2f} of {rows.sizes[c]} images")
        for c in least
    ]
    return section


def vendi_score(rows: NDArray) -> float:
    """Return the Vendi score of (n, D) unit rows."""
    small = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return _vendi_of(small.astype(np.float64) / len(rows))


def spread_section(rows: LabeledEmbeddings, reference: LabeledEmbeddings | None, seed: int) -> Section:
    """Return the mean distance of images to the center of their identity, and D_intra against the reference."""
    spread = np.add.reduceat(1 - rows.to_center, rows.starts[:-1]) / rows.sizes
    several = rows.sizes > 1
    section = Section([mean_over_identities(
        "diversity.within_spread", spread[several], "identities with several images"
    )])
    if reference is None:
        section.notes.append("D_intra needs a real reference set (--reference).")
        return section
    generator = np.random.default_rng(seed)
    enough = np.flatnonzero(rows.sizes > _RECALL_K)
    chosen = np.sort(generator.choice(enough, min(len(enough), _RECALL_IDENTITIES), replace=False))
    real = np.flatnonzero(reference.sizes[reference.owner] > 1)
    real = np.sort(generator.choice(real, min(len(real), _RECALL_REAL), replace=False))
    if not len(chosen) or not len(real):
        section.notes.append("D_intra needs identities with 4 images, and real identities with 2.")
        return section
    parts = [_without_identity(rows, np.arange(*rows.starts[identity : identity + 2])) for identity in chosen]
    values = recall_of_each(_without_identity(reference, real), parts, _RECALL_K)
    section.figures.append(mean_over_identities(
        "diversity.d_intra", values, "identities with at least 4 images", exact=False
    ))
    return section


def _vendi_figure(name: str, vectors: NDArray, group: NDArray, n: int, of: str) -> Figure:
    """Return the score with a jackknife error over groups of identities."""
    num_groups = int(group.max()) + 1 if n else 0
    value, left = _vendi_and_left_out(vectors, group, num_groups) if n else (None, [])
    error = jackknife_error(left) if num_groups >= 5 else None
    return Figure(name, value, n, of, error=error, error_from=JACKKNIFE)


def _vendi_and_left_out(vectors: NDArray, group: NDArray, num_groups: int) -> tuple[float, list[float]]:
    """Return the score, and the scores without each group, from the smaller of F F^T and F^T F."""
    n, size = vectors.shape
    if n <= size:
        cosines = (vectors @ vectors.T).astype(np.float64)
        kept = [np.flatnonzero(group != number) for number in range(num_groups)]
        left = [_vendi_of(cosines[np.ix_(rows, rows)] / len(rows)) for rows in kept if len(rows)]
        return _vendi_of(cosines / n), left
    matrices = np.zeros((num_groups, size, size))
    for number in range(num_groups):
        part = vectors[group == number]
        matrices[number] = part.T @ part
        signals.check()
    counts = np.bincount(group, minlength=num_groups)
    total = matrices.sum(0)
    left = [_vendi_of((total - matrix) / (n - count)) for matrix, count in zip(matrices, counts, strict=True)
            if count < n]
    return _vendi_of(total / n), left


def _vendi_of(matrix: NDArray[np.float64]) -> float:
    """Return exp of the entropy of the eigenvalues, which sum to 1 up to rounding."""
    values = np.maximum(np.linalg.eigvalsh(matrix), 0)
    values = values[values > 1e-12] / values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def _without_identity(rows: LabeledEmbeddings, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the chosen rows minus the mean of their identity, scaled to their expected length around the true mean.

    Their identities have at least 2 rows.
    """
    owner = rows.owner[chosen]
    sizes = rows.sizes[owner].astype(np.float64)[:, None]
    shifted = rows.vectors[chosen] - rows.sums[owner] / sizes
    return (shifted * np.sqrt(sizes / (sizes - 1))).astype(np.float32)
