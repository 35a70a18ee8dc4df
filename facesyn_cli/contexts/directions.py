"""Endless random directions, drawn in blocks, so that candidate k does not depend on where a run begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from facesyn_cli.contexts.source import CandidateBatch

BLOCK = 1024  # candidates drawn from one generator; part of what a seed means, never change it


def directions(draw: Callable[[int], np.ndarray], start: int, at_once: int = BLOCK) -> Iterator[CandidateBatch]:
    """Yield candidates without a face from number `start` on, without end.

    Args:
        draw: Number of a block -> (BLOCK, E) float64 vectors of any length; each block depends on its number alone.
        start: Number of the first candidate.
        at_once: Candidates in a batch; a batch never reaches over the end of a block.
    """
    while True:
        block, skip = divmod(start, BLOCK)
        vectors = draw(block)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        for first in range(skip, BLOCK, at_once):
            some = vectors[first : first + at_once]
            stop = start + len(some)
            origins = [{"candidate": k} for k in range(start, stop)]
            yield CandidateBatch(start, stop, some, origins, [None] * len(some))
            start = stop
