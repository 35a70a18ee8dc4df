"""Divides items into fixed batches, and batches over processes.

Batch k always holds the items k*B .. k*B+B-1 of the canonical order, independent of the number of processes and of what
was finished before, so results at one batch size are bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def fixed_batches(count: int, batch_size: int) -> list[range]:
    """Return the index ranges of the batches of `count` items; the last may be short (pad it)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def row_batches(rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the batches of some rows, in order."""
    return [[rows[place] for place in batch] for batch in fixed_batches(len(rows), batch_size)]


def share(items: Sequence[T], index: int, count: int) -> list[T]:
    """Return every `count`-th item from `index` on: the share of process `index` (0-based)."""
    if not 0 <= index < count:
        raise ValueError(f"index must be in 0..{count - 1}, got {index}")
    return list(items[index::count])
