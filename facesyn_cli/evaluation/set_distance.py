"""Distances between two sets in a feature space: Frechet and kernel distance, nearest neighbors, a classifier.

Frechet distance (Heusel et al. 2017, arXiv:1706.08500), with means m and covariances S of both sets:

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2))

Kernel distance (Binkowski et al. 2018, arXiv:1801.01401): the unbiased squared maximum mean discrepancy with
k(x, y) = (x . y / d + 1)^3, mean over random subsets of 1,000 (of all rows where there are fewer).

Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, k = 3), density and coverage (Naeem et al. 2020,
arXiv:2002.09797, k = 5). With B(x) the ball around x that reaches its k-th nearest neighbor of the same set:

    precision = share of generated y in some B(real x)        recall   = share of real x in some B(generated y)
    density   = mean over y of |{x : y in B(x)}| / k          coverage = share of real x with some y in B(x)

Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): a linear discriminant, with m the means and S
the mean covariance of both sets, tells them apart; its scores of rows that it was not fitted to have an area under the
ROC curve of 0.5 where the sets do not differ:

    w = (0.9 S + 0.1 tr(S) / D I)^-1 (m_generated - m_real),    score(x) = w . x

Order of arguments: real first, generated second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.nearest import rows_at_once
from facesyn_cli.evaluation.verification import roc_auc

KERNEL_SUBSET = 1000
KERNEL_ROUNDS = 50
FOLDS = 5
_LEAST = 1e-12  # of the diagonal: rows may all be equal


def frechet_distance(real: NDArray, generated: NDArray) -> float:
    """Return the Frechet distance of the normal distributions fitted to two sets.

    Args:
        real: (N, D) features, at least 2 rows.
        generated: (M, D) features, at least 2 rows.
    """
    if max(len(real), len(generated)) > real.shape[1]:
        return frechet_of_moments(*mean_covariance(real), *mean_covariance(generated))
    (mean_a, a), (mean_b, b) = (_centered(rows) for rows in (real, generated))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # the trace of the root, from a matrix of N x M numbers
    return float(max(np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross, 0.0))


def frechet_of_moments(
    mean_a: NDArray[np.float64], cov_a: NDArray[np.float64], mean_b: NDArray[np.float64], cov_b: NDArray[np.float64]
) -> float:
    """Return the Frechet distance of two normal distributions, from (D,) means and (D, D) covariances."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(max(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, 0.0))


def kernel_distance(real: NDArray, generated: NDArray, seed: int) -> tuple[float, float]:
    """Return the mean kernel distance over subsets, and its standard error.

    Args:
        real: (N, D) features, at least 2 rows.
        generated: (M, D) features, at least 2 rows.
        seed: Seed of the subsets; with no more than 1,000 rows in both sets there is one subset, all of them.
    """
    generator = np.random.default_rng(seed)
    size = min(len(real), len(generated), KERNEL_SUBSET)
    rounds = 1 if max(len(real), len(generated)) <= KERNEL_SUBSET else KERNEL_ROUNDS
    sets = [np.asarray(rows, dtype=np.float64) for rows in (real, generated)]
    values = []
    for _ in range(rounds):
        a, b = (
            rows if rounds == 1 else rows[generator.choice(len(rows), size, replace=False)] for rows in sets
        )
        n, m = len(a), len(b)
        within_a, within_b, across = _kernel(a, a), _kernel(b, b), _kernel(a, b)
        values.append(
            (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
            + (within_b.sum() - np.trace(within_b)) / (m * (m - 1)) - 2 * across.mean()
        )
        signals.check()
    error = float(np.std(values, ddof=1) / np.sqrt(rounds)) if rounds > 1 else np.nan
    return float(np.mean(values)), error


def neighborhoods(real: NDArray, generated: NDArray, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage with balls that reach the k-th neighbor.

    Args:
        real: (N, D) features, more than k rows.
        generated: (M, D) features, more than k rows.
        k: Neighbor whose distance is the radius.
    """
    real, generated = real.astype(np.float32), generated.astype(np.float32)
    radius_real, radius_generated = _radii(real, k), _radii(generated, k)
    in_real = np.zeros(len(generated), dtype=np.int64)     # number of real balls each generated row lies in
    is_covered = np.zeros(len(real), dtype=bool)           # real rows with a generated row in their ball
    is_recalled = np.zeros(len(real), dtype=bool)          # real rows in the ball of a generated one
    size = rows_at_once(len(generated))
    for start in range(0, len(real), size):
        block = slice(start, start + size)
        distance = _squared(real[block], generated)
        inside = distance <= radius_real[block, None]
        in_real += inside.sum(axis=0)
        is_covered[block] = inside.any(axis=1)
        is_recalled[block] = (distance <= radius_generated[None]).any(axis=1)
        signals.check()
    return {
        "precision": float((in_real > 0).mean()),
        "recall": float(is_recalled.mean()),
        "density": float(in_real.mean() / k),
        "coverage": float(is_covered.mean()),
    }


def recall_of_each(real: NDArray, parts: list[NDArray], k: int) -> NDArray[np.float64]:
    """Return for each part the share of real rows that lie in the ball of one of its rows.

    Args:
        real: (N, D) features.
        parts: (n_c, D) features each, more than k rows each.
        k: Neighbor, within the part, whose distance is the radius.
    """
    values, real = [], real.astype(np.float32)
    for part in parts:
        part = part.astype(np.float32)
        radius, size = _radii(part, k), rows_at_once(len(real))
        is_inside = np.zeros(len(real), dtype=bool)
        for start in range(0, len(part), size):
            block = slice(start, start + size)
            is_inside |= (_squared(real, part[block]) <= radius[None, block]).any(axis=1)
        values.append(is_inside.mean())
    return np.array(values, dtype=np.float64)


def classifier_auc(
    real: NDArray, generated: NDArray, real_owner: NDArray, generated_owner: NDArray, seed: int
) -> NDArray[np.float64]:
    """Return for each fold of identities how well a classifier fitted to the others tells its rows apart.

    Args:
        real: (N, D) features.
        generated: (M, D) features.
        real_owner: (N,) identity of each row.
        generated_owner: (M,) identity of each row.
        seed: Seed of the folds.

    Returns:
        (5,) areas under the ROC curve, in [0, 1]; empty where a set has fewer than 5 identities.
    """
    generator = np.random.default_rng(seed)
    folds = []
    for owner in (real_owner, generated_owner):
        people, place = np.unique(owner, return_inverse=True)
        if len(people) < FOLDS:
            return np.empty(0)
        folds.append(generator.permutation(np.arange(len(people)) % FOLDS)[place])
    areas = []
    for fold in range(FOLDS):
        inside = [rows[number == fold] for rows, number in zip((real, generated), folds, strict=True)]
        outside = [rows[number != fold] for rows, number in zip((real, generated), folds, strict=True)]
        if min(map(len, outside)) < 2:
            return np.empty(0)
        (mean_a, a), (mean_b, b) = (mean_covariance(rows) for rows in outside)
        pooled = (a + b) / 2
        size = len(pooled)
        shrunk = 0.9 * pooled + (0.1 * np.trace(pooled) / size + _LEAST) * np.eye(size)
        weights = np.linalg.solve(shrunk, mean_b - mean_a)
        is_generated = np.repeat([False, True], [len(rows) for rows in inside])
        areas.append(roc_auc(-(np.concatenate(inside) @ weights), is_generated))  # a distance: the less, the more so
        signals.check()
    return np.array(areas)


def mean_covariance(rows: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (D,) mean and the (D, D) covariance (divided by N - 1) of (N, D) rows, in float64."""
    mean, centered = _centered(rows)
    return mean, centered.T @ centered


def _centered(rows: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (D,) mean, and the (N, D) rows around it divided by sqrt(N - 1): their products are the covariance."""
    rows = np.asarray(rows, dtype=np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean) / np.sqrt(len(rows) - 1)


def _kernel(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _radii(rows: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return the squared distance of each row to its k-th nearest other row; (N,)."""
    radius = np.empty(len(rows), dtype=np.float32)
    size = rows_at_once(len(rows))
    for start in range(0, len(rows), size):
        distance = _squared(rows[start : start + size], rows)
        here = np.arange(len(distance))
        distance[here, here + start] = -1                                      # itself comes first
        radius[start : start + size] = np.partition(distance, k, axis=1)[:, k]
    return radius


def _squared(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squared Euclidean distances, (len(a), len(b))."""
    distance = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * (a @ b.T)
    return np.maximum(distance, 0)
