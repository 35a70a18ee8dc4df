"""Endless candidates: drawn faces with their embeddings, or random directions without a face."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.contexts.faces import to_face
from facesyn_cli.contexts.source import CandidateBatch, ContextSource, Resources
from facesyn_cli.data.pixels import UnreadableImage, encode_png

BLOCK = 1024  # directions drawn from one generator; part of what a seed means, never change it


class GeneratedFaces(ContextSource):
    """Base class of sources that draw faces without end.

    Attributes:
        crop: Share of the central square that is the face, where there is no aligner.
    """

    face_origin = GENERATED
    crop = 1.0

    def draw(self, numbers: list[int]) -> np.ndarray:
        """Return an image of each candidate number, (N, H, W, 3) uint8; it depends on that number alone."""
        raise NotImplementedError

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield candidates with their faces, one batch of the networks at a time."""
        align, size = self.resources.align, self.resources.batch_size
        while True:
            numbers = range(start, start + size)
            faces_u8, origins, failed = [], [], []
            for k, image_u8 in zip(numbers, self.draw(list(numbers)), strict=True):
                try:
                    faces_u8.append(align(image_u8) if align else to_face(image_u8, self.crop))
                    origins.append({"candidate": k})
                except UnreadableImage as error:
                    failed.append((k, f"candidate {k}: {error}"))
            vectors, faces = self.resources.embed(faces_u8), [encode_png(face_u8) for face_u8 in faces_u8]
            yield CandidateBatch(start, numbers.stop, vectors, origins, faces, failed)
            start = numbers.stop


class KnownDirections(ContextSource):
    """Base class of endless directions without a face that depend on the embeddings of known people.

    A subclass draws `block`; block b of candidates depends on (seed, known, b) alone.

    Attributes:
        block_size: Candidates of a block.
        digest: Digest of the embeddings, for the seed: other people get other noise; known after `open`.
    """

    needs = frozenset({"known"})
    face_origin = GENERATED
    block_size = BLOCK

    def open(self, resources: Resources) -> None:
        """Take the known embeddings."""
        super().open(resources)
        self.digest = hashlib.sha256(resources.known.tobytes()).hexdigest()

    @property
    def embedder(self) -> str | None:
        """The recognizer of the known embeddings."""
        return self.resources.known_embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield directions in batches of the size that the networks of a filter take."""
        return directions(self.block, start, self.resources.batch_size, self.block_size)

    def block(self, number: int) -> np.ndarray:
        """Return the vectors of one block, (block_size, E) float64 of any length."""
        raise NotImplementedError


def directions(
    draw: Callable[[int], np.ndarray], start: int, at_once: int, block_size: int = BLOCK
) -> Iterator[CandidateBatch]:
    """Yield candidates without a face, drawn in blocks so that candidate k does not depend on `start`.

    Args:
        draw: Number of a block -> (block_size, E) float64 vectors of any length, which depend on the number alone.
        start: Number of the first candidate.
        at_once: Candidates in a batch; a batch never spans two blocks.
        block_size: Candidates of a block.
    """
    while True:
        block, skip = divmod(start, block_size)
        vectors = draw(block)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        for first in range(skip, block_size, at_once):
            some = vectors[first : first + at_once]
            stop = start + len(some)
            origins = [{"candidate": k} for k in range(start, stop)]
            yield CandidateBatch(start, stop, some, origins, [None] * len(some))
            start = stop
