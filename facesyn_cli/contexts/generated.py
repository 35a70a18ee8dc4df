"""What the two generating sources share: full batches of drawn faces, embedded by the recognizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from facesyn_cli.contexts.source import EMBEDDING_SIZE, FACE_SIZE, CandidateBatch, Resources
from facesyn_cli.data.pixels import UnreadableImage, encode_png, fit_square, resize_u8


def generated_candidates(
    resources: Resources, start: int, draw: Callable[[list[int]], np.ndarray], crop: float = 1.0
) -> Iterator[CandidateBatch]:
    """Yield endless candidates, one batch of the networks at a time.

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


def to_face(image_u8: np.ndarray, crop: float = 1.0) -> np.ndarray:
    """Cut the central square out of an image and bring it to the size of a face.

    Args:
        image_u8: (H, W, 3) uint8.
        crop: Share of the square's side that is kept.

    Returns:
        (112, 112, 3) uint8.
    """
    return resize_u8(_center(fit_square(image_u8), crop), FACE_SIZE)


def _center(square_u8: np.ndarray, share: float) -> np.ndarray:
    side = max(1, round(len(square_u8) * share))
    first = (len(square_u8) - side) // 2
    return square_u8[first : first + side, first : first + side]
