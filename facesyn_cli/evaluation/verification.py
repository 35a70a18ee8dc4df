"""Face verification: deciding whether two images show the same person.

The published protocol (ArcFace, TFace): with unit embeddings a and b of a pair, the distance is

    d = |a - b|^2 = 2 (1 - cos(a, b))                                        in [0, 4]

and the pair is called "same" iff d < t, strictly, for a threshold t from {0, 0.01, ..., 3.99}. The pairs are
cut in their order into k folds; for each fold the threshold with the highest accuracy on the other folds
(the lowest one on ties) is applied to it. The result is the mean over the k folds.

Figures over all pairs, without folds and without a grid. With G genuine and I impostor distances:

    FAR(t) = |{i in I: i < t}| / |I|,   TAR(t) = |{g in G: g < t}| / |G|,   FRR = 1 - TAR
    TAR at FAR f = max {TAR(t) : FAR(t) <= f}
    AUC = P(g < i) + P(g = i) / 2                                            (Mann-Whitney)
    EER = (FAR + FRR) / 2 at the t where |FAR - FRR| is least                (the lowest such t)
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.metrics import IDIFF, Metric, declare

THRESHOLDS = np.arange(0, 4, 0.01)
FALSE_ACCEPT_RATES = (1e-2, 1e-3, 1e-4)
MIN_FALSE_ACCEPTS = 10  # a TAR is reported where FAR times the number of impostors reaches this

_ARCFACE = "ArcFace, arXiv:1801.07698"
declare(
    Metric("benchmark.accuracy", "Accuracy", "Share of a benchmark's pairs that the trained recognizer decides "
        "rightly: same person or not. Guessing gives 50 %.", formula="mean over the folds of the accuracy at the best "
        "threshold of the other folds", source=_ARCFACE, better="higher", unit="share"),
    Metric("benchmark.tar", "TAR at FAR", "Share of pairs of one person that are accepted (TAR) when the threshold "
        "accepts at most the given share of pairs of different people (FAR).",
        formula="max TAR(t) over the t with FAR(t) <= the given rate", source=_ARCFACE, better="higher", unit="share"),
    Metric("benchmark.eer", "Equal error rate", "Share of wrong decisions on a benchmark at the threshold where "
        "different people are accepted as often as the same person is rejected.",
        formula="(FAR + FRR) / 2 at the t with the least |FAR - FRR|", source=IDIFF, better="lower", unit="share"),
    Metric("benchmark.auc", "Area under the curve (AUC)", "Chance that a random pair of one person scores higher "
        "than a random pair of different people. Guessing gives 50 %.", formula="P(genuine > impostor) + P(equal) / 2",
        source="Mann-Whitney statistic", better="higher", unit="share"),
)


@dataclass(frozen=True)
class FoldResult:
    """The k-fold protocol on one list of pairs."""

    accuracy: NDArray[np.float64]   # (k,) share of right answers per fold, in [0, 1]
    threshold: NDArray[np.float64]  # (k,) squared distance applied to each fold
    tpr: NDArray[np.float64]        # (400,) share of genuine pairs accepted at each of `THRESHOLDS`, mean over the
                                    # folds
    fpr: NDArray[np.float64]        # (400,) the same of impostor pairs. A fold without such pairs counts as 0, as
                                    # published


def unit_rows(vectors: NDArray) -> NDArray[np.float64]:
    """Divide each row by its L2 norm, in float64; a zero row stays zero, as published.

    Args:
        vectors: (N, D).
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def squared_distances(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Return the (N,) squared Euclidean distances between the rows of two (N, D) arrays, in float64."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return np.sum(np.square(difference), axis=1)


def cosine_threshold(distance: float) -> float:
    """Return the cosine that belongs to a squared distance of unit vectors: 1 - d / 2."""
    return 1.0 - distance / 2.0


def verify_folds(distance: NDArray, is_same: NDArray[np.bool_], folds: int = 10) -> FoldResult:
    """Apply the published k-fold protocol.

    Args:
        distance: (N,) squared distances, in the order of the pair file.
        is_same: (N,) True for a genuine pair.
        folds: Number k of folds; they are consecutive, the first N mod k are one pair longer.

    Raises:
        UserError: A distance is not finite, or there are fewer than 2 folds or fewer pairs than folds.
    """
    distance, is_same = _checked(distance, is_same)
    if not 2 <= folds <= len(distance):
        raise UserError(f"cannot cut {len(distance)} pairs into {folds} folds; at least 2 folds and a pair in each")
    accepted, rejected, size = [], [], []
    for fold in np.array_split(np.arange(len(distance)), folds):
        accepted.append(_count_below(distance[fold][is_same[fold]]))
        rejected.append(_count_below(distance[fold][~is_same[fold]]))
        size.append((is_same[fold].sum(), (~is_same[fold]).sum()))
    genuine, impostor = np.array(accepted), np.array(rejected)                # (k, 400) pairs with d < t
    num_genuine, num_impostor = np.array(size).T[:, :, None]                  # (k, 1) each
    right = genuine + (num_impostor - impostor)                               # (k, 400) right answers
    best = np.argmax(right.sum(0) - right, axis=1)                            # (k,) on the other folds; first on ties
    accuracy = right[np.arange(folds), best] / (num_genuine + num_impostor)[:, 0]
    return FoldResult(
        accuracy=accuracy,
        threshold=THRESHOLDS[best],
        tpr=(genuine / np.maximum(num_genuine, 1)).mean(0),
        fpr=(impostor / np.maximum(num_impostor, 1)).mean(0),
    )


def benchmark_row(name: str, distance: NDArray, is_same: NDArray[np.bool_], folds: int) -> BenchmarkRow:
    """Return all figures of a list of pairs.

    Args:
        name: Of the benchmark.
        distance: (N,) squared distances, in the order of the pair file.
        is_same: (N,) True for a genuine pair.
        folds: As for `verify_folds`.

    Raises:
        UserError: As `verify_folds`.
    """
    result = verify_folds(distance, is_same, folds)
    threshold = float(result.threshold.mean())
    return BenchmarkRow(
        benchmark=name,
        pairs=len(distance),
        genuine=int(is_same.sum()),
        folds=folds,
        accuracy=float(result.accuracy.mean()),
        accuracy_std=float(result.accuracy.std()),
        threshold=threshold,
        threshold_cosine=cosine_threshold(threshold),
        tar={f"{far:.0e}": tar_at_far(distance, is_same, far) for far in FALSE_ACCEPT_RATES},
        auc=roc_auc(distance, is_same),
        eer=equal_error_rate(distance, is_same),
    )


def tar_at_far(distance: NDArray, is_same: NDArray[np.bool_], far: float) -> float | None:
    """Return the highest TAR at any threshold with a FAR of at most `far`, exactly.

    Returns:
        In [0, 1]; None without genuine pairs or with fewer than 10 / far impostor pairs.
    """
    genuine, impostor = sorted_classes(distance, is_same)
    allowed = far * len(impostor) + 1e-9  # 0.01 * 300 must allow 3
    if len(genuine) == 0 or allowed < MIN_FALSE_ACCEPTS:
        return None
    if allowed >= len(impostor):
        return 1.0
    threshold = impostor[int(allowed)]  # "d < t" accepts at most int(allowed) impostors
    return float(np.searchsorted(genuine, threshold, side="left") / len(genuine))


def roc_auc(distance: NDArray, is_same: NDArray[np.bool_]) -> float | None:
    """Return the exact area under the ROC curve, ties counted half; None where one class is empty."""
    genuine, impostor = sorted_classes(distance, is_same)
    if len(genuine) == 0 or len(impostor) == 0:
        return None
    below = np.searchsorted(impostor, genuine, side="left").sum(dtype=np.int64)
    below_or_tied = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return float(1.0 - (below + below_or_tied) / (2.0 * len(genuine) * len(impostor)))


def equal_error_rate(distance: NDArray, is_same: NDArray[np.bool_]) -> float | None:
    """Return (FAR + FRR) / 2 where they are nearest, over every threshold that matters; None as `roc_auc`."""
    genuine, impostor = sorted_classes(distance, is_same)
    if len(genuine) == 0 or len(impostor) == 0:
        return None

    def rates(threshold: float) -> tuple[float, float]:
        far = np.searchsorted(impostor, threshold, side="left") / len(impostor)
        return far, 1.0 - np.searchsorted(genuine, threshold, side="left") / len(genuine)

    def excess(threshold: float) -> float:
        far, frr = rates(threshold)
        return far - frr

    # the excess rises with every distance, from -1 to 1: the nearest threshold is the first with none below 0, or the
    # distance before it
    firsts = [d[at] for d in (genuine, impostor) if (at := bisect_left(d, 0.0, key=excess)) < len(d)]
    above = min(firsts, default=np.inf)
    below = max(d[at - 1] for d in (genuine, impostor) if (at := np.searchsorted(d, above, side="left")))
    return float(sum(rates(below if -excess(below) <= excess(above) else above)) / 2.0)


def sorted_classes(distance: NDArray, is_same: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sorted distances of the genuine and of the impostor pairs.

    Args:
        distance: (N,) distances.
        is_same: (N,) True for a genuine pair.

    Raises:
        UserError: A distance is not finite.
    """
    distance, is_same = _checked(distance, is_same)
    genuine, impostor = distance[is_same], distance[~is_same]
    genuine.sort()
    impostor.sort()
    return genuine, impostor


def _count_below(distance: NDArray) -> NDArray[np.int64]:
    """Return how many distances lie strictly below each threshold: (400,)."""
    return np.searchsorted(np.sort(distance), THRESHOLDS, side="left")


def _checked(distance: NDArray, is_same: NDArray) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    distance, is_same = np.asarray(distance, dtype=np.float64), np.asarray(is_same, dtype=bool)
    if distance.ndim != 1 or distance.shape != is_same.shape:
        raise ValueError(f"distance {distance.shape} and is_same {is_same.shape} must be two equal 1-D arrays")
    bad = int(np.count_nonzero(~np.isfinite(distance)))
    if bad:
        raise UserError(
            f"{bad} of {len(distance)} pair distances are not finite: the network returned NaN or infinite embeddings"
        )
    return distance, is_same
