"""Genuine and impostor scores of a set as counts: a set of 1.5 million images has 10^12 pairs.

A score is the cosine of two embeddings, rounded to 1e-4, so counts over a grid of 20,001 values hold all
information. With G genuine (same identity) and I impostor scores (as PyEER, IDiff-Face, arXiv:2308.04995):

    FMR(t) = |{i in I : i >= t}| / |I|,    FNMR(t) = |{g in G : g < t}| / |G|
    EER = (FMR + FNMR) / 2 at the t where |FNMR - FMR| is least       (the lowest such t)
    FMR100, FMR1000 = FNMR at the t where |FMR - 1 %|, |FMR - 0.1 %| is least
    FDR = (mu_G - mu_I)^2 / (sigma_G^2 + sigma_I^2)
    d'  = |mu_G - mu_I| / sqrt((sigma_G^2 + sigma_I^2) / 2)

Mean and variance need no pairs: with rows f, identity sums s_c and matrices M = sum f f^T, M_c of each identity,

    sum over impostor pairs of f_i . f_j      = (|sum_c s_c|^2 - sum_c |s_c|^2) / 2
    sum over impostor pairs of (f_i . f_j)^2  = (|M|_F^2 - sum_c |M_c|_F^2) / 2

so FDR and d' are exact at any size. Counts of impostors come from a random sample of images where all pairs
would be too many. Standard errors: bootstrap over identities, which are dealt into groups so that one resampling
is a weighted sum of the counts of pairs of groups; groups are single identities where there are few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.nearest import rows_at_once

STEP = 1e-4
NUM_BINS = 20001                                  # scores -1, -0.9999, ..., 1
GRID = np.round(np.arange(NUM_BINS) * STEP - 1, 4)
MIN_ACCEPTS = 10                                  # impostor pairs behind a reported rate
_COARSE = 10                                      # bins joined for the bootstrap
_MAX_GROUPS = 40
_RESAMPLES = 200
_MAX_ROWS = 2000                                  # rows of one identity of which all genuine pairs are counted


@dataclass(frozen=True)
class ScoreCounts:
    """The scores of one set."""

    genuine: NDArray[np.int64]                  # (20001,) number of genuine pairs at each score of `GRID`
    impostor: NDArray[np.int64]                 # (20001,) the same of impostor pairs
    genuine_exact: bool                         # all genuine pairs were counted
    impostor_exact: bool                        # all impostor pairs were counted; else those of a random sample of
                                                # images
    moments: tuple[float, float, float, float]  # (mu_G, var_G, mu_I, var_I), exact; NaN without such pairs
    by_group: NDArray[np.float64]               # (g, 2001) genuine counts of groups of identities, over ten times wider
                                                # bins
    by_groups: NDArray[np.float64]              # (g, g, 2001) impostor counts of pairs of groups; zero below the
                                                # diagonal

    @property
    def num_genuine(self) -> int:
        """Number of genuine pairs counted."""
        return int(self.genuine.sum())

    @property
    def num_impostor(self) -> int:
        """Number of impostor pairs counted."""
        return int(self.impostor.sum())

    def threshold_at(self, rate: float) -> float | None:
        """Return the lowest score t with FMR(t) <= rate; None with fewer than 10 / rate impostor pairs."""
        return threshold_at(self.impostor, rate)

    def error_of(self, figure: Callable[[NDArray, NDArray], float | None]) -> float | None:
        """Return the bootstrap standard error of a figure of (genuine, impostor) counts; None below 5 groups.

        Also None where most resamples leave the figure undefined or infinite. Resampled counts have ten times wider
        bins; only their spread is used.
        """
        if len(self.by_group) < 5:
            return None
        found = [figure(genuine, impostor) for genuine, impostor in zip(*self._resampled, strict=True)]
        values = [value for value in found if value is not None and np.isfinite(value)]
        return float(np.std(values, ddof=1)) if len(values) > _RESAMPLES // 2 else None

    @cached_property
    def _resampled(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Genuine and impostor counts of sets of as many groups, drawn with replacement; (R, 2001) each."""
        return resample(self.by_group, self.by_groups, draws_of(len(self.by_group), _RESAMPLES))


def count_scores(rows: LabeledEmbeddings, max_pairs: int, seed: int) -> ScoreCounts:
    """Count the scores of all genuine pairs, and of all or a sample of the impostor pairs.

    Args:
        rows: The embeddings.
        max_pairs: Impostor pairs to compute at most; with more there are, images are drawn at random.
        seed: Seed of that, and of the groups of the bootstrap.
    """
    group = rows.groups(_MAX_GROUPS, seed)
    num_groups = int(group.max()) + 1 if len(group) else 0
    by_group = np.zeros((num_groups, NUM_BINS), dtype=np.int64)
    square_sums = np.zeros(len(rows.identities))                               # |M_c|_F^2
    genuine_exact = True
    generator = np.random.default_rng(seed)
    for identity, size in enumerate(rows.sizes):
        vectors = rows.vectors[rows.rows_of(identity)]
        square_sums[identity] = _gram_square(vectors)
        if size > _MAX_ROWS:
            vectors, genuine_exact = vectors[generator.choice(size, _MAX_ROWS, replace=False)], False
        if size > 1:
            scores = (vectors @ vectors.T)[above_diagonal(len(vectors))]
            by_group[group[identity]] += count(scores)
        if identity % 1000 == 0:
            signals.check()
    impostor, by_groups, impostor_exact = _count_impostors(rows, group, max_pairs, generator)
    return ScoreCounts(
        by_group.sum(0), impostor, genuine_exact, impostor_exact, _moments(rows, square_sums),
        coarse(by_group).astype(np.float64), by_groups,
    )


def count(scores: NDArray) -> NDArray[np.int64]:
    """Return how many scores round to each value of `GRID`; (20001,)."""
    return np.bincount(bins_of(scores), minlength=NUM_BINS)


def bins_of(scores: NDArray) -> NDArray[np.int64]:
    """Return the place in `GRID` to which each score rounds; flat."""
    bins = np.rint((scores.ravel() + np.float32(1)) * np.float32(1 / STEP))
    return np.clip(bins, 0, NUM_BINS - 1).astype(np.int64)


def draws_of(num_groups: int, resamples: int) -> NDArray[np.float64]:
    """Return how often each group is drawn in each resampling of a bootstrap, (R, g); the same at every call."""
    generator = np.random.default_rng(0)
    return generator.multinomial(num_groups, [1 / num_groups] * num_groups, size=resamples).astype(np.float64)


def error_rates(genuine: NDArray, impostor: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (FMR, FNMR), (B + 1,) each: at every score of the grid, and above all of them.

    Args:
        genuine: (B,) counts by rising score.
        impostor: (B,) counts.
    """
    false_match = 1 - np.concatenate([[0], np.cumsum(impostor)]) / impostor.sum()
    false_non_match = np.concatenate([[0], np.cumsum(genuine)]) / genuine.sum()
    return np.clip(false_match, 0, 1), np.clip(false_non_match, 0, 1)


def equal_error_rate(genuine: NDArray, impostor: NDArray) -> tuple[float, int] | None:
    """Return (EER, grid index of its threshold); None where a class is empty."""
    if not genuine.sum() or not impostor.sum():
        return None
    false_match, false_non_match = error_rates(genuine, impostor)
    at = int(np.argmin(np.abs(false_non_match - false_match)))
    return float((false_match[at] + false_non_match[at]) / 2), at


def non_match_at(genuine: NDArray, impostor: NDArray, rate: float) -> tuple[float, int] | None:
    """Return (FNMR, grid index) where |FMR - rate| is least; None with fewer than 10 / rate impostor pairs."""
    if not genuine.sum() or impostor.sum() * rate < MIN_ACCEPTS:
        return None
    false_match, false_non_match = error_rates(genuine, impostor)
    at = int(np.argmin(np.abs(false_match - rate)))
    return float(false_non_match[at]), at


def threshold_at(impostor: NDArray, rate: float) -> float | None:
    """Return the lowest score of `GRID` with FMR <= rate; None with fewer than 10 / rate impostor pairs."""
    total = int(impostor.sum())
    if total * rate < MIN_ACCEPTS:
        return None
    above = total - np.concatenate([[0], np.cumsum(impostor)])                 # scores >= GRID[k]
    at = int(np.argmax(above <= rate * total + 1e-9))
    return float(at * STEP - 1)


def discriminability(moments: tuple[float, float, float, float]) -> tuple[float, float]:
    """Return (FDR, d') from (mu_G, var_G, mu_I, var_I); infinite where nothing varies."""
    mean_genuine, var_genuine, mean_impostor, var_impostor = moments
    difference, variance = abs(mean_genuine - mean_impostor), var_genuine + var_impostor
    if not variance > 0:
        return (np.inf, np.inf) if difference > 0 else (np.nan, np.nan)
    return difference**2 / variance, difference / np.sqrt(variance / 2)


def moments_of(counts: NDArray) -> tuple[float, float]:
    """Return mean and population variance of counted scores; the grid is that of the counts' length."""
    values = np.linspace(-1, 1, len(counts))
    total = counts.sum()
    if not total > 0:
        return np.nan, np.nan
    mean = float(counts @ values / total)
    return mean, float(counts @ np.square(values - mean) / total)


def _count_impostors(
    rows: LabeledEmbeddings, group: NDArray, max_pairs: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64], bool]:
    num_rows = len(rows.keys)
    if num_rows * (num_rows - 1) // 2 <= max_pairs:
        return *impostors_by_group(rows, group), True
    taken = np.sort(generator.choice(num_rows, int(np.sqrt(2 * max_pairs)), replace=False))
    return *impostors_by_group(rows, group, taken), False


def impostors_by_group(
    rows: LabeledEmbeddings, group: NDArray[np.int64], taken: NDArray[np.int64] | None = None,
    weight: NDArray[np.float64] | None = None,
) -> tuple[NDArray, NDArray[np.float64]]:
    """Count the impostor scores of a set, and of each pair of groups of its identities.

    Args:
        rows: The embeddings.
        group: (C,) group of each identity, from 0.
        taken: (n,) rows to compare, rising; None: all.
        weight: (N,) weight of each row, a pair has the product of two; None: pairs are counted.

    Returns:
        (20001,) counts or weights at each score of `GRID`; (g, g, 2001) those of pairs of groups, over ten times wider
        bins and zero below the diagonal.
    """
    owners = rows.owner if taken is None else rows.owner[taken]
    numbers = np.arange(len(rows.keys)) if taken is None else taken
    parts = [numbers[group[owners] == number] for number in range(int(group.max(initial=-1)) + 1)]
    total = np.zeros(NUM_BINS, dtype=np.int64 if weight is None else np.float64)
    by_groups = np.zeros((len(parts), len(parts), -(-NUM_BINS // _COARSE)))
    for a, first in enumerate(parts):
        vectors, owner = rows.vectors[first], rows.owner[first]
        for b in range(a, len(parts)):
            counts, others = np.zeros_like(total), rows.vectors[parts[b]]
            size = rows_at_once(len(parts[b]))
            for start in range(0, len(first), size):
                block = np.arange(start, min(start + size, len(first)))
                scores = vectors[block] @ others.T
                weights = None if weight is None else np.outer(weight[first[block]], weight[parts[b]])
                if a == b:
                    later = (owner[None] != owner[block, None]) & (np.arange(len(first)) > block[:, None])
                    scores, weights = scores[later], None if weights is None else weights[later]
                counts += np.bincount(bins_of(scores), None if weights is None else weights.ravel(), NUM_BINS)
            total += counts
            by_groups[a, b] = coarse(counts)
        signals.check()
    return total, by_groups


def resample(by_group: NDArray, by_groups: NDArray, draws: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Return genuine and impostor counts of sets whose groups were drawn with replacement; (R, B) each.

    Args:
        by_group: (g, B) genuine counts.
        by_groups: (g, g, B) impostor counts; zero below the diagonal.
        draws: (R, g) how often each group is drawn.
    """
    pairs = draws[:, :, None] * draws[:, None]                                 # (R, g, g)
    np.einsum("rgg->rg", pairs)[...] = draws                                   # a group is not paired with its copy
    impostor = pairs.reshape(len(draws), -1) @ by_groups.reshape(-1, by_groups.shape[-1])
    return draws @ by_group, impostor


def coarse(counts: NDArray) -> NDArray:
    """Return (..., 20001) counts over ten times wider bins, (..., 2001)."""
    return np.add.reduceat(counts, np.arange(0, NUM_BINS, _COARSE), axis=-1)


def _moments(rows: LabeledEmbeddings, square_sums: NDArray) -> tuple[float, float, float, float]:
    """Mean and variance of all genuine and of all impostor scores; see the module docstring."""
    size = rows.vectors.shape[1]
    matrix, diagonal, diagonal_square = np.zeros((size, size)), 0.0, 0.0
    for start in range(0, len(rows.keys), 65536):
        block = rows.vectors[start : start + 65536]
        matrix += block.T @ block
        lengths = np.square(block.astype(np.float64)).sum(1)
        diagonal, diagonal_square = diagonal + lengths.sum(), diagonal_square + np.square(lengths).sum()
    sizes = rows.sizes.astype(np.float64)
    num_genuine = (sizes * (sizes - 1)).sum() / 2
    num_impostor = (sizes.sum() ** 2 - np.square(sizes).sum()) / 2
    within = np.square(rows.sums).sum()
    genuine = _mean_variance((within - diagonal) / 2, (square_sums.sum() - diagonal_square) / 2, num_genuine)
    impostor = _mean_variance(
        (np.square(rows.sums.sum(0)).sum() - within) / 2, (np.square(matrix).sum() - square_sums.sum()) / 2,
        num_impostor,
    )
    return *genuine, *impostor


def _mean_variance(total: float, square_total: float, n: float) -> tuple[float, float]:
    if not n:
        return np.nan, np.nan
    return total / n, max(square_total / n - (total / n) ** 2, 0.0)


def _gram_square(vectors: NDArray[np.float32]) -> float:
    """Return |V V^T|_F^2 = |V^T V|_F^2 by the smaller of the two."""
    matrix = vectors @ vectors.T if len(vectors) <= vectors.shape[1] else vectors.T @ vectors
    return float(np.square(matrix.astype(np.float64)).sum())


@lru_cache(maxsize=32)
def above_diagonal(size: int) -> NDArray[np.bool_]:
    """Return which entries of a square matrix are above its diagonal; identities of one set have few sizes."""
    return ~np.tri(size, dtype=bool)
