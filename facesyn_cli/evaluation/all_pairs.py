"""Verification over all pairs of the images of a folder, and identification among its people, with intervals.

Identities have different numbers of images, and one with many would decide the result: 140,185 of the 156,462 genuine
pairs of a part of LFW show one person. So identities weigh the same. With n_c images of identity c, C identities and
C' of them with two images or more, a score being the cosine of two unit embeddings, rounded to 1e-4:

    TAR(t) = 1 / C' sum_c |{genuine pairs of c : score >= t}| / (n_c (n_c - 1) / 2)
    FAR(t) = 2 / (C (C - 1)) sum_{a < b} |{pairs of a and b : score >= t}| / (n_a n_b)
    TAR at FAR f = max {TAR(t) : FAR(t) <= f};   EER = (FAR + FRR) / 2 where |FAR - FRR| is least, FRR = 1 - TAR
    AUC = P(genuine > impostor) + P(equal) / 2 under these weights

A rate f is reported where f times the effective number of impostor pairs, (sum w)^2 / sum w^2 of their weights w,
reaches 10. Identification (closed set): the first image of every identity is the gallery, all other images are probes;
rank-k is the share of an identity's probes whose own gallery image is among the k best, averaged over the identities
that have probes.

Intervals of 95 %: bootstrap over identities (percentiles of 1,000 resamplings). Identities are dealt at random into at
most 64 groups, which are drawn with replacement; with no more than 64 identities each is a group. One resampling is
then a weighted sum of the counts of groups and of pairs of groups. Groups and draws depend on the number of identities
alone, so that two recognizers on the same images can be compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.identification import probe_ranks
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import (
    GRID,
    NUM_BINS,
    bins_of,
    coarse,
    draws_of,
    equal_error_rate,
    error_rates,
    impostors_by_group,
    resample,
)
from facesyn_cli.evaluation.verification import MIN_FALSE_ACCEPTS, unit_rows
from facesyn_cli.untrusted.arrays import read_archive

RANKS = (1, 5)
RATES = tuple(float(f"1e-{digits}") for digits in range(2, 9))  # FAR of which the TAR may be reported
_ALWAYS = RATES[:4]                                              # in every row, without a value where pairs are too few
_MAX_GROUPS, _RESAMPLES, _SEED = 64, 1000, 0
_PERCENT = (2.5, 97.5)
_TAR_IN_TRAINING = 1e-3

_ARRAYS = ("genuine", "impostor", "by_group", "by_groups", "counts")

PairFigure = Callable[[NDArray, NDArray], float]  # of the genuine and impostor weights at rising scores


@dataclass(frozen=True)
class AllPairs:
    """The weights of all genuine and impostor pairs at each score; each kind adds up to 1.

    Args:
        genuine: (20001,) at each score of `GRID`.
        impostor: (20001,) at each score of `GRID`.
        by_group: (g, 2001) genuine weights of groups of identities, over ten times wider bins.
        by_groups: (g, g, 2001) impostor weights of pairs of groups; zero below the diagonal.
        num_genuine: Pairs of images.
        num_impostor: Pairs of images.
        effective_impostors: Equally weighted pairs with as much information, (sum w)^2 / sum w^2.
    """

    genuine: NDArray[np.float64]
    impostor: NDArray[np.float64]
    by_group: NDArray[np.float64]
    by_groups: NDArray[np.float32]
    num_genuine: int
    num_impostor: int
    effective_impostors: float

    @staticmethod
    def read(path: Path) -> AllPairs:
        """Read what `arrays` gave from a `.npz` file.

        Raises:
            UserError: It is not such a file.
        """
        found = read_archive(path, "the scores of an eval (.npz)", _ARRAYS)
        groups, wide = len(found["by_group"]), coarse(GRID).shape[-1]
        shapes = [found[name].shape for name in _ARRAYS]
        if shapes != [(NUM_BINS,), (NUM_BINS,), (groups, wide), (groups, groups, wide), (3,)]:
            raise UserError(f"{path}: shapes {shapes} are not those of scores of all pairs; make the table again")
        num_genuine, num_impostor, effective = found.pop("counts").tolist()
        return AllPairs(*(found[name] for name in _ARRAYS[:4]), int(num_genuine), int(num_impostor), effective)

    def arrays(self) -> dict[str, NDArray]:
        """Return the arrays from which `read` makes the same."""
        counts = np.array([self.num_genuine, self.num_impostor, self.effective_impostors])
        return {name: getattr(self, name) for name in _ARRAYS[:4]} | {"counts": counts}

    @cached_property
    def resampled(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Genuine and impostor weights of sets of as many groups, drawn with replacement; (R, 2001) each."""
        return resample(self.by_group, self.by_groups, draws_of(len(self.by_group), _RESAMPLES))

    @property
    def rates(self) -> list[float]:
        """FAR for which there are pairs enough."""
        return [rate for rate in RATES if rate * self.effective_impostors >= MIN_FALSE_ACCEPTS - 1e-9]

    @property
    def figures(self) -> dict[str, PairFigure]:
        """The figures that are defined, by their names in `BenchmarkRow.interval`."""
        return {"eer": eer, "auc": auc, **{f"tar {rate:.0e}": tar_at(rate) for rate in self.rates}}

    def interval(self, figure: PairFigure) -> tuple[float, float]:
        """Return the 95 % interval of a figure, in [0, 1]."""
        value = figure(self.genuine, self.impostor)
        return _interval(value, self._values(figure), figure(coarse(self.genuine), coarse(self.impostor)))

    def difference(self, other: AllPairs, figure: PairFigure) -> tuple[float, tuple[float, float]]:
        """Return by how much a figure is above that of another recognizer on the same images, and the 95 % interval.

        Raises:
            ValueError: The other one has other groups.
        """
        if len(self.by_group) != len(other.by_group):
            raise ValueError(f"{len(self.by_group)} and {len(other.by_group)} groups: not the same identities")
        own, theirs = (pairs.at(figure) for pairs in (self, other))
        drawn = self._values(figure) - other._values(figure)
        middle = figure(coarse(self.genuine), coarse(self.impostor)) - figure(
            coarse(other.genuine), coarse(other.impostor))
        return own - theirs, _interval(own - theirs, drawn, middle, lowest=-1.0)

    def differences(self, other: AllPairs) -> dict[str, tuple[float, float, float]]:
        """Return how much each figure is above that of another recognizer, and the 95 % interval; see `difference`."""
        found = {name: self.difference(other, figure) for name, figure in self.figures.items()}
        return {name: (value, *interval) for name, (value, interval) in found.items()}

    def at(self, figure: PairFigure) -> float:
        """Return a figure of all pairs."""
        return figure(self.genuine, self.impostor)

    def _values(self, figure: PairFigure) -> NDArray[np.float64]:
        return np.array([figure(*both) for both in zip(*self.resampled, strict=True) if both[0].any()])


def tar_at(rate: float) -> PairFigure:
    """Return the figure "highest TAR at a FAR of at most `rate`"."""

    def figure(genuine: NDArray, impostor: NDArray) -> float:
        false_match, false_non_match = error_rates(genuine, impostor)
        return float(1 - false_non_match[np.argmax(false_match <= rate + 1e-12)])

    return figure


def eer(genuine: NDArray, impostor: NDArray) -> float:
    """Return the equal error rate."""
    found = equal_error_rate(genuine, impostor)
    return np.nan if found is None else found[0]


def auc(genuine: NDArray, impostor: NDArray) -> float:
    """Return the area under the ROC curve, equal scores counted half."""
    below = np.cumsum(impostor) - impostor / 2
    return min(float(genuine @ below / (genuine.sum() * impostor.sum())), 1.0)


def count_all_pairs(rows: LabeledEmbeddings) -> AllPairs:
    """Count all pairs of a set.

    Args:
        rows: The embeddings; at least two identities, and one of them with two images.
    """
    group = rows.groups(_MAX_GROUPS, _SEED)
    num_groups, sizes = int(group.max()) + 1, rows.sizes.astype(np.float64)
    several = np.flatnonzero(sizes > 1)
    by_group = np.zeros((num_groups, NUM_BINS))
    for identity in several:
        vectors = rows.vectors[rows.rows_of(identity)]
        scores = (vectors @ vectors.T)[~np.tri(len(vectors), dtype=bool)]
        by_group[group[identity]] += np.bincount(bins_of(scores), minlength=NUM_BINS) / (len(scores) * len(several))
        signals.check()
    impostor, by_groups = impostors_by_group(rows, group, weight=1 / rows.sizes[rows.owner])
    num_genuine = int((sizes * (sizes - 1)).sum() / 2)
    total, inverse = sizes.sum(), 1 / sizes
    weights = len(sizes) * (len(sizes) - 1) / 2                                # sums of w and w^2 over impostor pairs
    squares = (inverse.sum() ** 2 - np.square(inverse).sum()) / 2
    return AllPairs(
        by_group.sum(0), impostor / weights, coarse(by_group), (by_groups / weights).astype(np.float32), num_genuine,
        int(total * (total - 1) / 2) - num_genuine, float(weights**2 / squares),
    )


def identify(rows: LabeledEmbeddings) -> tuple[dict[str, float], dict[str, tuple[float, float]], int]:
    """Return rank-k rates, their 95 % intervals, and the number of probes.

    Args:
        rows: The embeddings; at least one identity has two images.
    """
    is_gallery = np.zeros(len(rows.keys), dtype=bool)
    is_gallery[rows.starts[:-1]] = True
    owner = rows.owner[~is_gallery]
    ranks = probe_ranks(rows.vectors[is_gallery], rows.owner[is_gallery], rows.vectors[~is_gallery], owner)
    group = rows.groups(_MAX_GROUPS, _SEED)
    people = np.flatnonzero(rows.sizes > 1)
    draws = draws_of(int(group.max()) + 1, _RESAMPLES)
    num_people = np.bincount(group[people], minlength=draws.shape[1])
    rates, intervals = {}, {}
    for k in RANKS:
        share = np.bincount(owner, ranks <= k, len(rows.sizes))[people] / (rows.sizes[people] - 1)
        found = np.bincount(group[people], share, draws.shape[1])
        rates[str(k)] = float(share.mean())
        counts = draws @ num_people
        drawn = (draws @ found)[counts > 0] / counts[counts > 0]
        intervals[f"rank {k}"] = _interval(rates[str(k)], drawn, rates[str(k)])
    return rates, intervals, len(ranks)


def _interval(value: float, drawn: NDArray[np.float64], middle: float, lowest: float = 0.0) -> tuple[float, float]:
    """Return the percentiles of resampled values, moved by what wider bins change in the figure itself."""
    low, high = np.percentile(drawn, _PERCENT) + value - middle
    return float(max(low, lowest)), float(min(high, 1.0))


def compared(row: BenchmarkRow, scores: dict[str, NDArray], earlier: Path) -> BenchmarkRow:
    """Return a row with its differences to that of another recognizer on the same images.

    Args:
        row: What `FolderPairs.evaluate` returned.
        scores: The arrays that it returned.
        earlier: Scores of the other one, `.npz`.

    Raises:
        UserError: The file is damaged, or not of the same images.
    """
    own, other = (AllPairs(*(scores[name] for name in _ARRAYS[:4]), *scores["counts"].tolist()), AllPairs.read(earlier))
    try:
        return row.model_copy(update={"difference": own.differences(other)})
    except ValueError as error:
        raise UserError(f"{earlier}: {error}") from error


@dataclass(frozen=True)
class FolderPairs:
    """The images of a folder with their people; an `EvaluationSet`.

    Args:
        name: In the table.
        source: The folder or zip.
    """

    unit: ClassVar[str] = "pairs"
    flip: ClassVar[bool | None] = None

    name: str
    source: ImageSet

    def __post_init__(self) -> None:
        sizes = [len(entries) for entries in self.source.by_identity().values()]
        if len(sizes) < 2 or max(sizes) < 2:
            raise UserError(f"{self.name}: {self.source.path} holds {len(self.source.entries)} images of {len(sizes)} "
                            "identities; at least 2 identities, and 2 images of one of them, were expected")

    def __len__(self) -> int:
        return len(self.source.entries) * (len(self.source.entries) - 1) // 2

    @property
    def images(self) -> Sequence[str]:
        """Name of each image, for messages."""
        return [entry.location for entry in self.source.entries]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image."""
        return self.source.read(self.source.entries[index])

    def evaluate(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the weights of pairs of groups; see `EvaluationSet.evaluate`."""
        if not np.isfinite(vectors).all():
            raise UserError(f"{self.name}: the network returned NaN or infinite embeddings")
        rows = self._labeled(unit_rows(vectors))
        pairs, (ranks, intervals, num_probes) = count_all_pairs(rows), identify(rows)
        rates, figures = pairs.rates, pairs.figures
        row = BenchmarkRow(
            benchmark=self.name, pairs=pairs.num_genuine + pairs.num_impostor, genuine=pairs.num_genuine,
            identities=len(rows.identities), gallery=len(rows.identities), probes=num_probes,
            tar={f"{r:.0e}": pairs.at(tar_at(r)) if r in rates else None for r in dict.fromkeys((*_ALWAYS, *rates))},
            auc=pairs.at(auc), eer=pairs.at(eer), rank=ranks,
            interval={name: pairs.interval(figure) for name, figure in figures.items()} | intervals,
        )
        return row, pairs.arrays()

    def figures(self, unit: NDArray[np.float64]) -> dict[str, float | None]:
        """Return EER, AUC and the TAR at a FAR of 1e-3, None where the pairs are too few, of unit rows (images, D)."""
        pairs = count_all_pairs(self._labeled(unit))
        tar = pairs.at(tar_at(_TAR_IN_TRAINING)) if _TAR_IN_TRAINING in pairs.rates else None
        return {"eer": pairs.at(eer), "auc": pairs.at(auc), "tar_1e-3": tar}

    def _labeled(self, unit: NDArray[np.float64]) -> LabeledEmbeddings:
        entries = self.source.entries
        return LabeledEmbeddings.of(
            [entry.key for entry in entries], [entry.identity for entry in entries], unit, self.name
        )
