"""Face images of contexts: 112 x 112, their bytes unchanged where they already fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facesyn_cli.artifacts.origins import StatedOrigin
from facesyn_cli.config.fields import runtime_only
from facesyn_cli.contexts.source import FACE_SIZE
from facesyn_cli.data.pixels import decode_image, encode_png, fit_square, resize_u8
from facesyn_cli.data.record_images import is_upright
from facesyn_cli.plugins.settings import PluginConfig


class GivenFacesConfig(PluginConfig):
    """Settings of a source of given faces."""

    origin: StatedOrigin | None = runtime_only(
        None, "origin of the faces, photo (of real people) or generated; None: as in their headers, else unknown"
    )


def read_face(
    data: bytes, align: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, bytes]:
    """Decode an encoded image; return the pixels for the recognizer and the bytes to store.

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


def to_face(image_u8: np.ndarray, crop: float = 1.0) -> np.ndarray:
    """Return a face, (112, 112, 3) uint8: the center of an image (H, W, 3), `crop` of its square's side."""
    square_u8 = fit_square(image_u8)
    side = max(1, round(len(square_u8) * crop))
    first = (len(square_u8) - side) // 2
    return resize_u8(square_u8[first : first + side, first : first + side], FACE_SIZE)
