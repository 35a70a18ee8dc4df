"""The face image that lies beside a context: 112 x 112, kept as it came where it already fits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.contexts.source import FACE_SIZE
from facesyn_cli.data.pixels import decode_image, encode_png, fit_square, resize_u8
from facesyn_cli.data.record_images import is_upright


def read_face(
    data: bytes, align: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, bytes]:
    """Decode an encoded image to what a recognizer sees and to what is stored.

    Args:
        data: Encoded image.
        align: Cuts the face out of it; None: it is one.

    Returns:
        (112, 112, 3) uint8 pixels of the central square, and the bytes: those given if they are 112 x 112 and stand
        upright as they lie, else a PNG.

    Raises:
        UnreadableImage: The bytes are no image, or it has no face to align.
    """
    pixels_u8 = decode_image(data)
    if align is not None:
        pixels_u8 = align(pixels_u8)
        return pixels_u8, encode_png(pixels_u8)
    if pixels_u8.shape[:2] == (FACE_SIZE, FACE_SIZE) and is_upright(data):
        return pixels_u8, data
    pixels_u8 = resize_u8(fit_square(pixels_u8), FACE_SIZE)
    return pixels_u8, encode_png(pixels_u8)


def face_suffix(data: bytes) -> str:
    """Return the file suffix that fits an encoded image, whatever its file was called."""
    return suffix_of_content(data) or ".png"
