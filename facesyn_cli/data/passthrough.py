"""What record formats that store any kind of image do with one: keep its bytes where it fits and stands upright."""

from __future__ import annotations

from pydantic import Field

from facesyn_cli.data.pixels import decode_image, encode_jpeg
from facesyn_cli.data.record_images import fit_any
from facesyn_cli.plugins.settings import PluginConfig


class PassthroughConfig(PluginConfig):
    """Settings of formats that store JPEG, PNG, WebP and BMP as they are."""

    quality: int | None = Field(None, ge=1, le=100)  # JPEG quality of images that are encoded anew; None: PNG, no loss


def fit_passthrough(data: bytes, size: int | None, quality: int | None) -> bytes:
    """Return an image untouched when it has the right size and stands upright, else its central square resized.

    Args:
        data: Encoded image.
        size: Side in pixels, or None to keep every image.
        quality: JPEG quality of an image that is encoded anew; None: PNG.

    Raises:
        UnreadableImage: The bytes are no image, or only a part of one.
    """
    kept = fit_any(data, size)
    if kept is data or quality is None:
        return kept
    return encode_jpeg(decode_image(kept), quality)
