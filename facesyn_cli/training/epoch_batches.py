"""Batches of one epoch after the other, as recognition training is published.

Each epoch is a permutation of the set, padded by repeating it to a multiple of the global batch; batch k
of it holds places k B .. k B + B - 1, group g of a batch of groups of N its places g N .. g N + N - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from facesyn_cli.training.data_order import epoch_order


@dataclass(frozen=True)
class EpochBatches:
    """Which rows are seen when: a function of seed and step.

    Args:
        seed: Seed of the permutations.
        count: Number of rows of the set.
        batch_size: Images of the global batch; may exceed `count`.
        group_size: Images of a group; divides `batch_size`.
    """

    seed: int
    count: int
    batch_size: int
    group_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return -(-self.count // self.batch_size)

    def rows(self, step: int, group: int) -> list[tuple[int, int]]:
        """Return (epoch, row) of the images of one group of one step; steps count over all epochs, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size + group * self.group_size
        order = epoch_order(self.seed, epoch, self.count)
        return [(epoch, int(row)) for row in order[np.arange(start, start + self.group_size) % self.count]]

    def groups(self, first_step: int, last_step: int, groups: range) -> Iterator[list[tuple[int, int]]]:
        """Yield `rows` of the given groups for every step from `first_step` up to, not including, `last_step`."""
        for step in range(first_step, last_step):
            for group in groups:
                yield self.rows(step, group)
