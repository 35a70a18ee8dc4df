"""Embeddings and thumbnails with the identity of each row, sorted by identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabeledEmbeddings:
    """Unit embeddings of the images of a set; the rows of one identity are adjacent."""

    keys: list[str]               # key of each row
    identities: list[str]         # name of each identity, C of them
    vectors: NDArray[np.float32]  # (N, D) float32 unit rows
    starts: NDArray[np.int64]     # (C + 1,) row at which each identity begins; the last one is N
    name: str = "set"             # name of the set, in lists of images
    thumbnails: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 16, 16), np.uint8))  # (N, 16, 16) gray
                                  # values; empty where they are not needed

    @staticmethod
    def of(
        keys: Sequence[str], names: Sequence[str], vectors: NDArray, name: str = "set",
        thumbnails: NDArray[np.uint8] | None = None,
    ) -> LabeledEmbeddings:
        """Bring rows of any order together; identities keep the order of their first row.

        Args:
            keys: (N,) keys.
            names: (N,) identity of each row.
            vectors: (N, D) unit rows.
            name: Name of the set.
            thumbnails: (N, 16, 16) gray values, or None.
        """
        number: dict[str, int] = {}
        owner = np.array([number.setdefault(one, len(number)) for one in names], dtype=np.int64)
        order = np.argsort(owner, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(number)))])
        rows = np.asarray(vectors, dtype=np.float32)
        is_sorted = (order == np.arange(len(order))).all()
        rows = np.ascontiguousarray(rows) if is_sorted else rows[order]  # no copy of millions of sorted rows
        more = {} if thumbnails is None else {"thumbnails": thumbnails[order]}
        return LabeledEmbeddings([keys[row] for row in order], list(number), rows, starts, name, **more)

    def part(self, chosen: NDArray) -> LabeledEmbeddings:
        """Return some rows, by a mask or by rising numbers, as a set of the same name."""
        rows = np.arange(len(self.keys))[chosen]
        return LabeledEmbeddings.of(
            [self.keys[row] for row in rows], [self.identity_of(row) for row in rows], self.vectors[rows], self.name,
            self.thumbnails[rows] if len(self.thumbnails) else None,
        )

    def image(self, row: int) -> tuple[str, str]:
        """Return the name of the set and the key of a row."""
        return self.name, self.keys[row]

    def images_of(self, identity: int, most: int) -> list[tuple[str, str]]:
        """Return the name of the set and the keys of the first images of an identity."""
        return [(self.name, key) for key in self.keys[self.rows_of(identity)][:most]]

    def identity_of(self, row: int) -> str:
        """Return the name of the identity of a row."""
        return self.identities[self.owner[row]]

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
