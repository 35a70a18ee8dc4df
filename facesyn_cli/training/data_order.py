"""The order of training examples: a function of (seed, step), so that resuming needs only the step.

`batch_rows`: epochs follow each other without a gap. Position p of the endless stream belongs to epoch p // count, and
a batch may hold the end of one epoch and the beginning of the next.

`EpochBatches`: batches of one epoch after the other, as recognition training is published. Each epoch is a permutation
of the set, padded by repeating it to a multiple of the global batch; batch k of it holds places k B .. k B + B - 1,
group g of a batch of groups of N its places g N .. g N + N - 1. In a curriculum the epochs at the beginning hold the
first rows of the set only, in as many steps: one permutation of them after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from facesyn_cli.data.sharding import fixed_batches, share

_PASS = 1 << 20  # more than the epochs of a training


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Return the rows of the global batch of one step.

    Args:
        seed: Seed of the training.
        step: Optimizer step, 0-based.
        batch_size: Number of examples of the global batch; may be larger than `count`.
        count: Number of examples in an epoch.

    Returns:
        (batch_size,) int64 rows in [0, count).
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, count)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        rows[inside] = epoch_order(seed, int(epoch), count)[places[inside]]
    return rows


def continued_seed(seed: int, initial: str) -> int:
    """Return the seed of the order and the noise of a training that starts from the weights of another one.

    With the seed itself it would see the images of that training's first steps again, under the same noise, and a
    denoiser learns such pairs by heart.

    Args:
        seed: Seed of the training.
        initial: Digest of the weights that it starts from.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {initial}".encode()).digest()[:7], "big")


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the (count,) permutation of one epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class EpochBatches:
    """The rows of every group of every step.

    Args:
        seed: Seed of the permutations.
        count: Number of rows of the set.
        batch_size: Images of the global batch; may exceed `count`.
        group_size: Images of a group; divides `batch_size`.
        curriculum: (epoch, number of rows): from this epoch on, 0-based, so many first rows take part. Both increase.
            Empty: all rows, from the first epoch.
    """

    seed: int
    count: int
    batch_size: int
    group_size: int
    curriculum: tuple[tuple[int, int], ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return -(-self.count // self.batch_size)

    def rows(self, step: int, group: int) -> list[tuple[int, int]]:
        """Return (epoch, row) of the images of one group of one step; steps count over all epochs, from 0.

        Further passes over the first rows within an epoch have numbers of epochs of their own, so that the random
        changes of an image differ.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size + group * self.group_size
        places = range(start, start + self.group_size)
        count = max((rows for first, rows in self.curriculum if first <= epoch), default=self.count)
        if count == self.count:
            order = epoch_order(self.seed, epoch, count)
            return [(epoch, int(order[place % count])) for place in places]
        numbers = [(epoch + place // count * _PASS, place % count) for place in places]
        return [(number, int(epoch_order(self.seed, number, count)[place])) for number, place in numbers]

    def groups(self, first_step: int, last_step: int, groups: range) -> Iterator[list[tuple[int, int]]]:
        """Yield `rows` of the given groups for every step from `first_step` up to, not including, `last_step`."""
        for step in range(first_step, last_step):
            for group in groups:
                yield self.rows(step, group)


def local_share(batch_size: int, index: int, count: int) -> range:
    """Return the places (or groups) of the global batch that process `index` of `count` works on.

    Shares differ by at most one example; they are contiguous, so joined in process order they are the batch.
    """
    return range(index * batch_size // count, (index + 1) * batch_size // count)


def is_held_out(key: str, fraction: float) -> bool:
    """Return True for the keys held out for validation: about `fraction` of all, each decided by itself."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")
    return number < fraction * 2**64


def validation_places(count: int, batch_size: int, index: int, num_processes: int) -> list[int]:
    """Return which of `count` held-out images process `index` evaluates, in whole batches."""
    return [place for batch in share(fixed_batches(count, batch_size), index, num_processes) for place in batch]
