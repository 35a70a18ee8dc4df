"""Converts an encoded image to the one a packed set stores.

Bytes are kept when the image has the right size, is in a format that the published readers decode, and is stored
upright: those readers ignore the EXIF orientation, so a rotated image is encoded anew. Of an image that is not square
the largest central square is taken (`data/squares.py`).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.data.pixels import MAX_PIXELS, decode_image, encode_jpeg, encode_png, fit_square, resize_u8, turn_of
from facesyn_cli.plugins.settings import PluginConfig

SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_JPEG = b"\xff\xd8\xff"


class PassthroughConfig(PluginConfig):
    """Settings of formats that store JPEG, PNG, WebP and BMP as they are."""

    quality: int | None = Field(
        None, ge=1, le=100, description="JPEG quality of images that are encoded anew; None: PNG, no loss"
    )


class PassthroughFormat:
    """Base of record formats that keep the bytes of images that fit."""

    kind = "RecordSet"
    cfg: PassthroughConfig

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return an image untouched when it has the right size and stands upright, else its central square resized.

        Raises:
            UnreadableImage: The bytes are no image, or only a part of one.
        """
        kept = fit_any(data, size)
        if kept is data or self.cfg.quality is None:
            return kept
        return encode_jpeg(decode_image(kept), self.cfg.quality)


def fit_jpeg(data: bytes, size: int | None, quality: int, subsampling: str) -> bytes:
    """Return the image as an upright RGB JPEG of the given size; untouched when it already is one.

    Args:
        data: Encoded image.
        size: Side in pixels, or None to keep the image's own size.
        quality: JPEG quality 1..100.
        subsampling: Of the color, `4:4:4`, `4:2:2` or `4:2:0`.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    if _is_sound_jpeg(data, size):
        return data
    pixels_u8 = decode_image(data)
    if _has_size(pixels_u8, size) and _kind_upright(data) == ("JPEG", "RGB"):
        return data
    return encode_jpeg(_resized(pixels_u8, size), quality, subsampling)


def fit_any(data: bytes, size: int | None) -> bytes:
    """Return the image untouched when it has the given size and stands upright, else as PNG, which loses nothing.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    if _is_sound_jpeg(data, size):
        return data
    pixels_u8 = decode_image(data)
    if _has_size(pixels_u8, size) and is_upright(data):
        return data
    return encode_png(_resized(pixels_u8, size))


def suffix_of(data: bytes) -> str:
    """Return the file suffix that the content of an encoded image calls for, `.jpg` for example."""
    return suffix_of_content(data) or ".jpg"


def is_upright(data: bytes) -> bool:
    """True when a JPEG, PNG, WebP or BMP is stored upright, so that readers may ignore EXIF."""
    return _kind_upright(data)[0] != ""


def _has_size(pixels_u8: np.ndarray, size: int | None) -> bool:
    return size is None or pixels_u8.shape[:2] == (size, size)


def _resized(pixels_u8: np.ndarray, size: int | None) -> np.ndarray:
    return pixels_u8 if size is None else resize_u8(fit_square(pixels_u8), size)


def _is_sound_jpeg(data: bytes, size: int | None) -> bool:
    """True for an upright RGB JPEG of the right size that can be decoded to its end.

    Decoded in gray at an eighth of its size: every coefficient is read, in a third of the time of a full decoder. After
    False the image must be decoded in full.
    """
    if not data.startswith(_JPEG):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            has_orientation = any(name in image.info for name in ("exif", "xmp"))  # possibly
            is_plain = image.mode == "RGB" and not has_orientation and width * height <= MAX_PIXELS
            if not is_plain or size not in (None, width) or size not in (None, height):
                return False
            image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
            image.load()
            return True
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError,
            Image.DecompressionBombError, Warning):
        return False  # the full decoder gives the reason


def _kind_upright(data: bytes) -> tuple[str, str]:
    """Return PIL's names of format and mode; empty ones for other formats and for images that are not upright."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(SUFFIX_OF)) as image:
            return ("", "") if turn_of(image) is not None else (image.format or "", image.mode)
    except UnidentifiedImageError:
        return "", ""
