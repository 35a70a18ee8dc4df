"""Endless candidates: drawn faces with their embeddings, or random directions without a face."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.contexts.faces import to_face
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.data.pixels import UnreadableImage, encode_png

BLOCK = 1024  # directions drawn from one generator; part of what a seed means, never change it


def generated_candidates(
    resources: Resources, start: int, draw: Callable[[list[int]], np.ndarray], crop: float = 1.0
) -> Iterator[CandidateBatch]:
    """Yield candidates with drawn faces, one batch of the networks at a time.

    Args:
        resources: Batch size, recognizer and, where faces are to be found first, the aligner.
        start: Number of the first candidate.
        draw: Numbers of N candidates -> (N, H, W, 3) uint8 images; each depends on its number alone.
        crop: Share of the central square that is the face, where there is no aligner.
    """
    while True:
        numbers = list(range(start, start + resources.batch_size))
        stop = start + len(numbers)
        faces_u8, origins, failed = [], [], []
        for k, image_u8 in zip(numbers, draw(numbers), strict=True):
            try:
                faces_u8.append(resources.align(image_u8) if resources.align else to_face(image_u8, crop))
                origins.append({"candidate": k})
            except UnreadableImage as error:
                failed.append((k, f"candidate {k}: {error}"))
        vectors = resources.embed(np.stack(faces_u8)) if faces_u8 else np.empty((0, EMBEDDING_SIZE), np.float32)
        yield CandidateBatch(start, stop, vectors, origins, [encode_png(face) for face in faces_u8], failed)
        start = stop


def directions(draw: Callable[[int], np.ndarray], start: int, at_once: int = BLOCK) -> Iterator[CandidateBatch]:
    """Yield candidates without a face, drawn in blocks so that candidate k does not depend on `start`.

    Args:
        draw: Number of a block -> (BLOCK, E) float64 vectors of any length; each block depends on its number alone.
        start: Number of the first candidate.
        at_once: Candidates in a batch; a batch never spans two blocks.
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
