"""What the record formats do with an image that store any kind: keep its bytes where its size fits."""

from __future__ import annotations

from pydantic import Field

from facesyn_cli.data.pixels import decode_image, encode_jpeg, fit_square, resize_u8
from facesyn_cli.data.record_images import fit_any
from facesyn_cli.plugins.settings import PluginConfig


class KeptImagesConfig(PluginConfig):
    """Settings of formats that store JPEG, PNG, WebP and BMP as they are."""

    quality: int | None = Field(None, ge=1, le=100)  # JPEG quality of images that are resized; None: PNG, no loss


def fit_kept(data: bytes, size: int | None, quality: int | None) -> bytes:
    """Return an image untouched when it has the right size, else its central square resized.

    Args:
        data: Encoded image.
        size: Side in pixels, or None to keep every image.
        quality: JPEG quality of a resized image; None: PNG.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    if quality is None:
        return fit_any(data, size)
    pixels_u8 = decode_image(data)
    if size is None or pixels_u8.shape[:2] == (size, size):
        return data
    return encode_jpeg(resize_u8(fit_square(pixels_u8), size), quality)
