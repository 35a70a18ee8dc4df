"""From any encoded image to the one a packed set stores.

Of an image that is not square the largest central square is taken, as everywhere in facesyn.
"""

from __future__ import annotations

import io

from PIL import Image

from facesyn_cli.data.pixels import decode_image, encode_jpeg, encode_png, fit_square, resize_u8

SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_EXIF_ORIENTATION = 0x0112


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
    pixels_u8 = decode_image(data)
    if size is None or pixels_u8.shape[:2] == (size, size):
        return data
    return encode_png(resize_u8(fit_square(pixels_u8), size))


def suffix_of(data: bytes) -> str:
    """Return the file suffix that the content of an encoded image calls for, `.jpg` for example."""
    return SUFFIX_OF.get(_format_of(data), ".jpg")


def _format_of(data: bytes, mode: str | None = None) -> str:
    """Return PIL's name of the format; empty when the image has another mode or must be turned to stand upright."""
    with Image.open(io.BytesIO(data), formats=tuple(SUFFIX_OF)) as image:
        if mode is not None and (image.mode != mode or image.getexif().get(_EXIF_ORIENTATION, 1) != 1):
            return ""
        return image.format or ""
