"""Embeddings with the identity of each row, sorted by identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabeledEmbeddings:
    """Unit embeddings; the rows of one identity are adjacent."""

    keys: list[str]               # key of each row
    identities: list[str]         # name of each identity, C of them
    vectors: NDArray[np.float32]  # (N, D) float32 unit rows
    starts: NDArray[np.int64]     # (C + 1,) row at which each identity begins; the last one is N

    @staticmethod
    def of(keys: Sequence[str], names: Sequence[str], vectors: NDArray) -> LabeledEmbeddings:
        """Bring rows of any order together; identities keep the order of their first row.

        Args:
            keys: (N,) keys.
            names: (N,) identity of each row.
            vectors: (N, D) unit rows.
        """
        number: dict[str, int] = {}
        owner = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
        order = np.argsort(owner, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(number)))])
        if (order == np.arange(len(order))).all():
            rows = np.ascontiguousarray(vectors, dtype=np.float32)
            return LabeledEmbeddings(list(keys), list(number), rows, starts)
        rows = np.asarray(vectors, dtype=np.float32)[order]
        return LabeledEmbeddings([keys[row] for row in order], list(number), rows, starts)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(C,) number of rows of each identity."""
        return np.diff(self.starts)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(N,) identity of each row, 0..C-1."""
        return np.repeat(np.arange(len(self.identities)), self.sizes)

    @cached_property
    def sums(self) -> NDArray[np.float64]:
        """(C, D) sum of the rows of each identity."""
        total = np.empty((len(self.identities), self.vectors.shape[1]))
        for identity, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            total[identity] = self.vectors[start:stop].sum(axis=0, dtype=np.float64)
        return total

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        """(N,) f . f of each row, 1 up to rounding."""
        return np.einsum("nd,nd->n", self.vectors, self.vectors).astype(np.float64)

    @cached_property
    def sum_products(self) -> NDArray[np.float64]:
        """(N,) f . s of each row f and the sum s of its identity."""
        product = np.empty(len(self.keys))
        for identity in range(len(self.identities)):
            part = self.rows_of(identity)
            product[part] = self.vectors[part].astype(np.float64) @ self.sums[identity]
        return product

    @cached_property
    def to_center(self) -> NDArray[np.float64]:
        """(N,) cosine of each row to the center of its identity; 0 where the rows cancel out."""
        lengths = np.linalg.norm(self.sums, axis=1)[self.owner]
        return np.divide(self.sum_products, lengths, out=np.zeros(len(self.keys)), where=lengths > 0)

    @cached_property
    def centers(self) -> NDArray[np.float32]:
        """(C, D) unit mean of the unit rows of each identity; zero where they cancel out."""
        lengths = np.linalg.norm(self.sums, axis=1, keepdims=True)
        return (self.sums / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)

    def rows_of(self, identity: int) -> slice:
        """Return the slice of the rows of one identity."""
        return slice(int(self.starts[identity]), int(self.starts[identity + 1]))

    def groups(self, count: int, seed: int) -> NDArray[np.int64]:
        """Assign the identities at random to at most `count` groups of equal size; (C,) group of each."""
        num_identities = len(self.identities)
        dealt = np.arange(num_identities) % min(count, max(num_identities, 1))
        return np.random.default_rng(seed).permutation(dealt)
