"""In which order training sees its examples: a function of (seed, step) and nothing else.

Epochs follow each other without a gap: position p of the endless stream belongs to epoch p // count, and
a batch may hold the end of one epoch and the beginning of the next. So no example is left out, and
resuming needs only the step.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


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


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the (count,) permutation of one epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def local_share(batch_size: int, index: int, count: int) -> range:
    """Return the places of the global batch that process `index` of `count` works on.

    Shares differ by at most one example; they are contiguous, so joined in process order they are the batch.
    """
    return range(index * batch_size // count, (index + 1) * batch_size // count)


def is_held_out(key: str, fraction: float) -> bool:
    """True for the keys kept for validation: about `fraction` of all, whatever else is in the set."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")
    return number < fraction * 2**64
