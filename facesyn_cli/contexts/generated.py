"""What the two generating sources share: full batches of drawn faces, embedded by the recogniser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from facesyn_cli.contexts.source import FACE_SIZE, CandidateBatch, Resources
from facesyn_cli.data.pixels import encode_png, fit_square, resize_u8


def generated_candidates(
    resources: Resources, start: int, draw: Callable[[list[int]], np.ndarray]
) -> Iterator[CandidateBatch]:
    """Yield endless candidates, one batch of the networks at a time.

    Args:
        resources: Batch size and recogniser.
        start: Number of the first candidate.
        draw: Numbers of N candidates -> (N, 112, 112, 3) uint8 faces; each depends on its number alone.
    """
    while True:
        numbers = list(range(start, start + resources.batch_size))
        faces_u8 = draw(numbers)
        stop = start + len(numbers)
        origins = [{"candidate": k} for k in numbers]
        yield CandidateBatch(start, stop, resources.embed(faces_u8), origins, [encode_png(face) for face in faces_u8])
        start = stop


def to_faces(images_u8: np.ndarray, crop: float = 1.0) -> np.ndarray:
    """Cut the central square out of each image and bring it to the size of a face.

    Args:
        images_u8: (N, H, W, 3) uint8.
        crop: Share of the square's side that is kept.

    Returns:
        (N, 112, 112, 3) uint8.
    """
    return np.stack([resize_u8(_centre(fit_square(image), crop), FACE_SIZE) for image in images_u8])


def _centre(square_u8: np.ndarray, share: float) -> np.ndarray:
    side = max(1, round(len(square_u8) * share))
    first = (len(square_u8) - side) // 2
    return square_u8[first : first + side, first : first + side]
