"""Label errors: wrong labels, two people under one label, one person under two.

With unit embeddings f, identity sums s of n rows, a threshold t_x at false match rate x (of the set's own
impostors, or of real ones where a reference is given):

    wrong label        cos(f, center of another identity) > cos(f, center of the other images of its own)
    mixed identity     a split of its images in two parts of at least 2 with mean scores
                       within both >= t_(1e-3) and between them < t_(1e-2)
    split identity     two labels with mean score between them, s_a . s_b / (n_a n_b), at least t_(1e-4), and as
                       alike as most identities are to themselves: at least the 10th percentile, or 0.9 times the
                       median where that is less, of the mean scores inside identities

The parts of a mixed identity are found by the sign of the leading eigenvector of its doubly centered matrix of
scores (the two-means relaxation of Ding and He 2004), followed by a few rounds of two-means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.identity_quality import loo_cosines, mean_genuine
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import Metric, declare
from facesyn_cli.evaluation.nearest import Sample, nearest, pairs_above
from facesyn_cli.evaluation.score_counts import above_diagonal
from facesyn_cli.evaluation.section import SPREAD, Figure, Finding, Row, Section, clustered_error

_LISTED = 24
_MIN_PART = 2
_MIN_BELOW = 0.1     # share of an identity's pairs below t from which it is split
_MAX_LOOKED = 500    # images of one identity that are split
_ROUNDS = 5
_SHUFFLED = 0.5      # share of wrong labels from which the labels as a whole are doubtful
_MANY_WRONG = 0.02

declare(
    Metric("identity.wrong_label_share", "Wrong labels", "Share of images that are nearer to another identity than "
        "to their own.", formula="share of images whose best match among all other identities' centers beats their "
        "own center, computed without the image", better="lower", unit="share"),
    Metric("identity.mixed_identities", "Mixed identities", "Labels under which the images fall into two people.",
        better="lower", unit="count"),
    Metric("identity.split_identities", "Split identities", "Pairs of labels that show one and the same person.",
        better="lower", unit="count"),
    Metric("identity.wrong_labels", "Images with a doubtful label", "Images nearer to another identity than to their "
        "own, worst first.", show="pairs"),
    Metric("identity.mixed", "Identities that hold two people", "Labels whose images fall into two groups."),
    Metric("identity.split", "Identities that are one person", "Pairs of labels that seem to show one person."),
)


def wrong_labels(rows: LabeledEmbeddings, max_pairs: int, seed: int) -> Section:
    """Return the images that are nearer to another identity than to their own.

    Args:
        rows: The set.
        max_pairs: Products of an image and a center to compute at most; beyond, images are drawn at random.
        seed: Seed of that.
    """
    own = loo_cosines(rows)
    known = np.flatnonzero(np.isfinite(own))
    if not len(known) or len(rows.identities) < 2:
        return Section(notes=["No identity has two images (or there is only one identity): labels were not checked."])
    drawn, is_exact = Sample(max_pairs, seed).of(len(known), len(rows.identities))
    known = known[drawn]
    identities = np.arange(len(rows.identities))
    other, others = nearest(rows.vectors[known], rows.centers, rows.owner[known], identities)
    is_wrong = other > own[known]
    share = float(is_wrong.mean())
    error = clustered_error(is_wrong.astype(float), rows.owner[known])
    section = Section([Figure(
        "identity.wrong_label_share", share, len(known), "images of identities with several", is_exact,
        error, SPREAD,
    )])
    worst = np.flatnonzero(is_wrong)
    worst = worst[np.argsort(-(other - own[known])[worst], kind="stable")][:_LISTED]
    section.lists["identity.wrong_labels"] = [
        Row(
            [rows.image(known[k]), rows.image(_most_typical(rows, int(others[k])))],
            [rows.identity_of(known[k]), rows.identities[others[k]]], float(other[k]),
            label=f"{other[k]:.2f} to the other, {own[known[k]]:.2f} to its own identity",
        )
        for k in worst
    ]
    counted = f"{is_wrong.sum():,} of {len(known):,}" if share <= _MANY_WRONG else f"{share:.1%} of the"
    text = f"{counted} images are nearer to another identity than to their own."
    if share > _SHUFFLED:
        text = f"The labels do not fit the faces: {text} Possible causes: shuffled labels, or a generator that does " \
               "not follow its contexts."
    if len(worst):
        level = "fault" if share > _SHUFFLED else "warning" if share > _MANY_WRONG else "note"
        section.findings.append(Finding(level, text, ["identity.wrong_label_share"], ["identity.wrong_labels"]))
    return section


def mixed_identities(rows: LabeledEmbeddings, t_within: float, t_between: float) -> Section:
    """Return the labels that hold two people.

    Args:
        rows: The set.
        t_within: Score at a false match rate of 1e-3.
        t_between: Score at a false match rate of 1e-2.
    """
    found = []
    for identity, size in enumerate(rows.sizes):
        if identity % 1000 == 0:
            signals.check()
        if size < 2 * _MIN_PART:
            continue
        vectors = rows.vectors[rows.rows_of(identity)][:_MAX_LOOKED]
        scores = (vectors @ vectors.T).astype(np.float64)
        upper = scores[above_diagonal(len(scores))]
        if (upper < t_within).mean() < _MIN_BELOW:
            continue
        parts = two_parts(scores)
        if parts is None:
            continue
        first, second = np.flatnonzero(parts), np.flatnonzero(~parts)
        if min(len(first), len(second)) < _MIN_PART:
            continue
        between = scores[np.ix_(first, second)].mean()
        within = min(_mean_score(scores, first), _mean_score(scores, second))
        if within >= t_within and between < t_between:
            found.append((between - within, identity, first, second, between))
    found.sort(key=lambda item: item[:2])
    section = Section([Figure(
        "identity.mixed_identities", len(found), int((rows.sizes >= 2 * _MIN_PART).sum()),
        "identities with at least 4 images",
    )])
    section.lists["identity.mixed"] = [
        Row(
            [rows.image(rows.starts[identity] + k) for k in [*first[:5], *second[:5]]],
            [rows.identities[identity]], float(between), label=f"{len(first)} and {len(second)} images",
        )
        for _, identity, first, second, between in found[:_LISTED]
    ]
    if found:
        names = ", ".join(rows.identities[identity] for _, identity, *_ in found[:5])
        section.findings.append(Finding(
            "fault", f"{_count(len(found), 'identity seems', 'identities seem')} to hold two different people each: "
            f"{names}{', ...' if len(found) > 5 else ''}.", ["identity.mixed_identities"], ["identity.mixed"],
        ))
    return section


def split_identities(rows: LabeledEmbeddings, threshold: float) -> Section:
    """Return the pairs of labels that seem to be one person.

    Args:
        rows: The set.
        threshold: Score at a false match rate of 1e-4.
    """
    num_identities = len(rows.identities)
    inside = mean_genuine(rows)
    inside = inside[np.isfinite(inside)]
    typical = min(np.percentile(inside, 10), 0.9 * np.median(inside)) if len(inside) else threshold
    lowest = max(threshold, float(typical))
    means = (rows.sums / np.maximum(rows.sizes, 1)[:, None]).astype(np.float32)
    pairs, scores, total = pairs_above(means, lowest, most=10_000)
    section = Section([Figure(
        "identity.split_identities", total, num_identities * (num_identities - 1) // 2, "pairs of identities",
        threshold=lowest,
    )])
    section.lists["identity.split"] = [
        Row([*rows.images_of(i, 5), *rows.images_of(j, 5)], [rows.identities[i], rows.identities[j]], float(score))
        for (i, j), score in zip(pairs[:_LISTED], scores[:_LISTED], strict=True)
    ]
    if total:
        i, j = pairs[0]
        section.findings.append(Finding(
            "fault" if total <= num_identities else "warning",
            f"{_count(total, 'pair of identities looks', 'pairs of identities look')} like one person under two "
            f"labels, first {rows.identities[i]} and {rows.identities[j]} (mean score {scores[0]:.2f}).",
            ["identity.split_identities"], ["identity.split"],
        ))
    return section


def two_parts(scores: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Split a set of faces in two by their (n, n) scores; (n,) bool, or None where one part would be empty."""
    mean = scores.mean(axis=0)
    centered = scores - mean - mean[:, None] + scores.mean()
    is_first = np.linalg.eigh(centered)[1][:, -1] > 0
    for _ in range(_ROUNDS):
        if is_first.all() or not is_first.any():
            return None
        to_first, to_second = (_to_part(scores, part) for part in (is_first, ~is_first))
        again = to_first > to_second
        if (again == is_first).all():
            break
        is_first = again
    return None if is_first.all() or not is_first.any() else is_first


def _to_part(scores: NDArray, part: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean score of each face to the others of a part."""
    others = scores @ part - np.where(part, np.diag(scores), 0)
    return others / np.maximum(part.sum() - part, 1)


def _mean_score(scores: NDArray, part: NDArray[np.int64]) -> float:
    inside = scores[np.ix_(part, part)]
    return float((inside.sum() - np.trace(inside)) / (len(part) * (len(part) - 1)))


def _most_typical(rows: LabeledEmbeddings, identity: int) -> int:
    """Return the row of the image nearest to the center of an identity."""
    part = rows.rows_of(identity)
    return part.start + int(np.argmax(rows.vectors[part] @ rows.centers[identity]))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
