"""Held-out identities and verification pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.console import log
from facesyn_cli.data.datasets import LabeledSet, rows_digest
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.training.data_order import is_held_out


class Relabeled:
    """Some rows of a labeled set, with labels 0, 1, ... for the identities that have rows.

    Args:
        examples: The whole set.
        rows: Rows to keep, rising.
    """

    def __init__(self, examples: LabeledSet, rows: NDArray[np.int64]) -> None:
        self._examples, self._rows = examples, rows
        self.old_labels, self.labels = np.unique(examples.labels[rows], return_inverse=True)
        self.num_classes = len(self.old_labels)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._examples.read(int(self._rows[index]))

    def name_of(self, index: int) -> str:
        """Return the location of an image, for messages."""
        return self._examples.name_of(int(self._rows[index]))

    def content(self) -> Any:
        """Return a JSON value that names the images; see `LabeledSet`."""
        return [self._examples.content(), rows_digest(self._rows)]


def split_identities(
    examples: LabeledSet, identities: Sequence[str], seed: int, fraction: float
) -> tuple[Relabeled, Relabeled]:
    """Split a set by identity into rows to train on and rows to validate on.

    Whether an identity is held out follows from its name and the seed, whatever else is in the set.

    Args:
        examples: The set.
        identities: Name of every label.
        seed: Seed of the choice.
        fraction: About this share of the identities is held out.
    """
    is_out = np.array([is_held_out(f"{seed}/{name}", fraction) for name in identities], dtype=bool)
    rows = is_out[examples.labels]
    return Relabeled(examples, np.flatnonzero(~rows)), Relabeled(examples, np.flatnonzero(rows))


def held_out_pairs(labels: NDArray[np.integer], num_pairs: int, seed: int) -> NDArray[np.int64] | None:
    """Draw genuine pairs (neighbors among the rows of an identity) and as many impostor pairs.

    Args:
        labels: (N,) label of every row.
        num_pairs: Most pairs of each kind.
        seed: Seed of the draw.

    Returns:
        (N, 2) rows, genuine and impostor pairs by turns; None where there are fewer than two identities or none has
        two rows.
    """
    order = np.argsort(labels, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    genuine = np.array([pair for own in rows for pair in pairwise(own)])
    if len(rows) < 2 or not len(genuine):
        return None
    generator = np.random.default_rng([seed, num_pairs])
    pairs: list[tuple[int, int]] = []
    for a, b in generator.permutation(genuine)[:num_pairs]:
        one, other = generator.choice(len(rows), 2, replace=False)
        pairs += [(a, b), (generator.choice(rows[one]), generator.choice(rows[other]))]
    return np.array(pairs)


def held_out_sets(held_out: Sequence[Relabeled], num_pairs: int, seed: int, is_wanted: bool) -> list[PairSet]:
    """Return a pair set of the held-out identities of each input that gives pairs; `is_wanted`: warn of others."""
    sets = []
    for number, rest in enumerate(held_out, 1):
        pairs = held_out_pairs(rest.labels, num_pairs, seed) if len(rest.labels) else None
        if pairs is None:
            if is_wanted:
                log.warning(f"input {number}: {rest.num_classes} held-out identities give no pairs to validate with")
            continue
        rows, places = np.unique(pairs.T.ravel(), return_inverse=True)
        first, second = np.split(places, 2)
        name = "held-out" if len(held_out) == 1 else f"held-out-{number}"
        is_same, shown = np.arange(len(pairs)) % 2 == 0, Relabeled(rest, rows)
        names = [shown.name_of(index) for index in range(len(rows))]
        sets.append(PairSet(name, first, second, is_same, min(10, len(pairs)), names, shown.read))
    return sets
