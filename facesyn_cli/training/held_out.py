"""Verification pairs of identities that training does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowPairs:
    """Pairs of rows of a set, genuine and impostor by turns.

    Args:
        first: (N,) rows.
        second: (N,) rows.
        is_same: (N,) True where both rows show one identity.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    is_same: NDArray[np.bool_]


def held_out_pairs(identities: Sequence[Sequence[int]], num_pairs: int, seed: int) -> RowPairs | None:
    """Draw genuine pairs and as many impostor pairs.

    Args:
        identities: Rows of each held-out identity.
        num_pairs: Most pairs of each kind.
        seed: Seed of the draw.

    Returns:
        The pairs, or None where there are fewer than two identities or none has two rows.
    """
    generator = np.random.default_rng([seed, num_pairs])
    genuine = [(a, b) for rows in identities for a, b in pairwise(rows)]
    if len(identities) < 2 or not genuine:
        return None
    generator.shuffle(genuine)
    pairs: list[tuple[int, int, bool]] = []
    for a, b in genuine[:num_pairs]:
        one, other = generator.choice(len(identities), 2, replace=False)
        impostor = (generator.choice(identities[one]), generator.choice(identities[other]))
        pairs += [(int(a), int(b), True), (int(impostor[0]), int(impostor[1]), False)]
    first, second, is_same = zip(*pairs, strict=True)
    return RowPairs(np.array(first), np.array(second), np.array(is_same))
