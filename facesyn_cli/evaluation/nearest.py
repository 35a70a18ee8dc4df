"""The nearest neighbors of many embeddings among many others, by cosine, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals

_QUERY_ROWS, _BANK_ROWS = 2048, 8192
_PRODUCTS = _QUERY_ROWS * _BANK_ROWS  # held at once: 64 MB


def rows_at_once(num_columns: int) -> int:
    """Return how many rows of a product with so many columns are computed at once; memory stays flat."""
    return max(1, min(4096, _PRODUCTS // max(num_columns, 1)))


def nearest(
    queries: NDArray[np.float32],
    bank: NDArray[np.float32],
    query_owner: NDArray | None = None,
    bank_owner: NDArray | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the highest cosine of each query to a row of the bank, and which row that is.

    Args:
        queries: (Q, D) unit rows.
        bank: (B, D) unit rows.
        query_owner: (Q,) identity of each query; with `bank_owner`, rows of the same identity are left out.
        bank_owner: (B,) identity of each row, rising.

    Returns:
        (Q,) cosines, -inf where no row is left; (Q,) rows, -1 there. Of equal ones the first.
    """
    best = np.full(len(queries), -np.inf, dtype=np.float32)
    where = np.full(len(queries), -1, dtype=np.int64)
    for first in range(0, len(queries), _QUERY_ROWS):
        block = slice(first, first + _QUERY_ROWS)
        for start in range(0, len(bank), _BANK_ROWS):
            chunk = bank[start : start + _BANK_ROWS]
            cosines = queries[block] @ chunk.T                                 # (q, b)
            if query_owner is not None and bank_owner is not None:
                _leave_out(cosines, query_owner[block], bank_owner[start : start + _BANK_ROWS])
            row = cosines.argmax(axis=1)
            value = cosines[np.arange(len(cosines)), row]
            is_better = value > best[block]
            best[block][is_better] = value[is_better]
            where[block][is_better] = row[is_better] + start
        signals.check()
    return best, where


def pairs_above(
    vectors: NDArray[np.float32], threshold: float, most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Return the pairs of rows whose dot product is at least a threshold, highest first.

    Args:
        vectors: (N, D) rows.
        threshold: Lowest product.
        most: Pairs to return at most.

    Returns:
        (P, 2) rows i < j; (P,) products; the number of all such pairs.
    """
    pairs, products, total = np.empty((0, 2), np.int64), np.empty(0, np.float32), 0
    lowest = threshold  # of the pairs that may still be returned
    for first in range(0, len(vectors), _QUERY_ROWS):
        block = vectors[first : first + _QUERY_ROWS]
        for start in range(first, len(vectors), _BANK_ROWS):
            cosines = block @ vectors[start : start + _BANK_ROWS].T
            if start < first + len(block):  # only i < j
                below = np.arange(start, start + cosines.shape[1]) <= np.arange(first, first + len(block))[:, None]
                cosines[below] = -np.inf
            total += int(np.count_nonzero(cosines >= threshold))
            i, j = np.nonzero(cosines >= lowest)
            pairs = np.concatenate([pairs, np.stack([i + first, j + start], 1)])
            products = np.concatenate([products, cosines[i, j]])
            if len(products) > most:
                keep = np.argsort(-products, kind="stable")[:most]
                pairs, products = pairs[keep], products[keep]
                lowest = np.nextafter(products[-1], np.float32(np.inf))  # of equal ones the first are returned
        signals.check()
    order = np.argsort(-products, kind="stable")
    return pairs[order], products[order], total


@dataclass(frozen=True)
class Near:
    """The nearest row of a gallery, of each query."""

    cosines: NDArray[np.float32]
    where: NDArray[np.int64]
    queries: NDArray[np.int64]
    owner: NDArray[np.int64]
    is_exact: bool


@dataclass(frozen=True)
class Sample:
    """The queries that are compared with a gallery: all where that is at most `max_pairs` products, else a sample."""

    max_pairs: int
    seed: int

    def near(
        self, rows: NDArray[np.float32], owner: NDArray, gallery: NDArray[np.float32],
        gallery_owner: NDArray | None = None,
    ) -> Near:
        """Return the nearest row of a gallery; with the gallery's owners, of any other identity."""
        queries, is_exact = self.of(len(rows), len(gallery))
        owners = (owner[queries], gallery_owner) if gallery_owner is not None else (None, None)
        cosines, where = nearest(rows[queries], gallery, *owners)
        return Near(cosines, where, queries, owner[queries], is_exact)

    def of(self, size: int, gallery: int) -> tuple[NDArray[np.int64], bool]:
        """Return which of `size` queries to compare with a gallery, and whether that is all of them."""
        most = max(1, self.max_pairs // max(gallery, 1))
        if size <= most:
            return np.arange(size), True
        return np.sort(np.random.default_rng(self.seed).choice(size, most, replace=False)), False


def _leave_out(cosines: NDArray[np.float32], query_owner: NDArray, bank_owner: NDArray) -> None:
    """Set the cosines to rows of the query's own identity to -inf; those rows are adjacent."""
    starts = np.searchsorted(bank_owner, query_owner, side="left")
    stops = np.searchsorted(bank_owner, query_owner, side="right")
    for row in np.flatnonzero(stops > starts):
        cosines[row, starts[row] : stops[row]] = -np.inf
