"""The context filter `unique`: accept identities that differ from each other.

A candidate f_i is accepted when it is far from every candidate accepted before it (DCFace, Kim et al. 2023,
arXiv:2304.07060, the unique set of section 4, written with cosines):

    U = { f_i : cos(f_i, f_j) < r  for all j < i with f_j in U }
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from facesyn_cli.contexts.cosine import matches_within, reaches
from facesyn_cli.contexts.source import ContextFilter
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

BLOCK_ROWS = 1024  # candidates compared with each other at once


class UniqueConfig(PluginConfig):
    """Settings of the filter `unique`."""

    r: float = Field(0.3, ge=-1, le=1, description="cosine from which two candidates count as the same person")


class Unique(ContextFilter):
    """Greedy uniqueness in the order of the candidates.

    Args:
        r: Cosine from which two candidates count as the same person.
    """

    remembers = True

    def __init__(self, r: float) -> None:
        self.r = r
        self._bank = np.empty((0, 0), dtype=np.float32)  # kept rows first, spare rows behind them
        self._num_kept = 0

    def restore(self, vectors: np.ndarray) -> None:
        """Add candidates that an earlier run accepted."""
        if not len(vectors):
            return
        needed = self._num_kept + len(vectors)
        if needed > len(self._bank):
            bank = np.empty((max(needed, 2 * len(self._bank)), vectors.shape[1]), dtype=np.float32)
            if self._num_kept:
                bank[: self._num_kept] = self._bank[: self._num_kept]
            self._bank = bank
        self._bank[self._num_kept : needed] = vectors
        self._num_kept = needed

    def select(self, vectors: np.ndarray) -> np.ndarray:
        """Accept candidates with a cosine below r to all accepted before; see `ContextFilter.select`."""
        keep = np.zeros(len(vectors), dtype=bool)
        for start in range(0, len(vectors), BLOCK_ROWS):
            block = vectors[start : start + BLOCK_ROWS]
            new = np.flatnonzero(~reaches(block, self._bank[: self._num_kept], self.r))
            new = new[_greedy(matches_within(block[new], self.r))]
            keep[start + new] = True
            self.restore(block[new])
        return keep


def _greedy(match: np.ndarray) -> np.ndarray:
    """Return the rows left when each accepted row removes later ones that it matches; (N, N) -> (N,) bool."""
    alive = np.ones(len(match), dtype=bool)
    for row in np.flatnonzero(match.any(axis=1)):
        if alive[row]:
            alive &= ~match[row]
    return alive


@register(
    "context_filter",
    "unique",
    Card(
        about="Keep a candidate only if its cosine to every candidate kept before it is below r (greedy, in order).",
        paper="DCFace, Kim et al. 2023, arXiv:2304.07060",
    ),
)
def build_unique(cfg: UniqueConfig) -> Unique:
    """Build the filter."""
    return Unique(cfg.r)
