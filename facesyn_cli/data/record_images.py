"""From any encoded image to the one a packed set stores.

Of an image that is not square the largest central square is taken, as everywhere in facesyn.
"""

from __future__ import annotations

import io

from PIL import Image

from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.data import pixels
from facesyn_cli.data.pixels import MAX_PIXELS, decode_image, encode_jpeg, encode_png, fit_square, resize_u8, turn_of

SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_SIGNATURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n", ".png"), (b"RIFF", ".webp"), (b"BM", ".bmp"))


def fit_jpeg(data: bytes, size: int | None, quality: int, subsampling: str) -> bytes:
    """Return the image as an upright RGB JPEG of the given size; untouched when it already is one.

    Args:
        data: Encoded image.
        size: Side in pixels, or None to keep the image's own size.
        quality: JPEG quality 1..100.
        subsampling: Of the colour, `4:4:4`, `4:2:2` or `4:2:0`.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    if _is_sound_jpeg(data, size):
        return data
    pixels_u8 = decode_image(data)
    height, width = pixels_u8.shape[:2]
    if size in (None, height) and size in (None, width) and _format_of(data, mode="RGB") == "JPEG":
        return data
    return encode_jpeg(pixels_u8 if size is None else resize_u8(fit_square(pixels_u8), size), quality, subsampling)


def fit_any(data: bytes, size: int | None) -> bytes:
    """Return the image untouched when it has the given size, else resized and as PNG, which loses nothing.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    if _is_sound_jpeg(data, size):
        return data
    pixels_u8 = decode_image(data)
    if size is None or pixels_u8.shape[:2] == (size, size):
        return data
    return encode_png(resize_u8(fit_square(pixels_u8), size))


def suffix_of(data: bytes) -> str:
    """Return the file suffix that the content of an encoded image calls for, `.jpg` for example."""
    return suffix_of_content(data) or ".jpg"


def _is_sound_jpeg(data: bytes, size: int | None) -> bool:
    """True for an upright RGB JPEG of the right size that can be decoded to its end.

    Grey at an eighth of its size: every coefficient is read, as a full decoder does, in a third of the time.
    False says nothing: such an image is decoded in full.
    """
    if not data.startswith(_SIGNATURES[0][0]):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            is_plain = image.mode == "RGB" and "exif" not in image.info and width * height <= MAX_PIXELS
            if not is_plain or size not in (None, width) or size not in (None, height):
                return False
            image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
            image.load()
            return True
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError,
            Image.DecompressionBombError, Warning):
        return False  # the full decoder says why


def _format_of(data: bytes, mode: str | None = None) -> str:
    """Return PIL's name of the format; empty when the image has another mode or must be turned to stand upright."""
    with Image.open(io.BytesIO(data), formats=pixels.FORMATS) as image:
        if mode is not None and (image.mode != mode or turn_of(image) is not None):
            return ""
        return image.format or ""
