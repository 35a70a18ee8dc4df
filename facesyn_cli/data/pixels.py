"""Decodes, encodes and converts pixels; value ranges are defined here and nowhere else.

    pixels_u8    uint8, 0..255, (..., H, W, 3), RGB
    pixels       float32, [-1, 1], (..., 3, H, W), RGB
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch.nn import functional as F

# A larger image is refused before it is unpacked. While it is decoded, a pixel costs at most 16 bytes, of any format
# and depth: as Pillow holds it, a copy that is turned or converted, numbers of 16 bit, and the result.
MAX_PIXELS = 64_000_000
MAX_SCANS = 100          # passes of a progressive JPEG, each of which goes over all pixels; encoders write about ten
_HAS_AVIF = "avif" in features.modules and features.check_module("avif")  # Pillow 11.3 and later
FORMATS = (  # that Pillow may try; MPO, the JPEG of some phones, is opened by JPEG
    "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if _HAS_AVIF else []),
)
JPEG_QUALITY = 95        # of every JPEG that facesyn encodes, unless a setting says otherwise; OpenCV's default
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_OF_16_BIT = (np.arange(65536) / 257.0 + 0.5).astype(np.uint8)


class UnreadableImage(ValueError):
    """The bytes are no image in a supported format; the message is the reason."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode an encoded image to RGB, upright.

    Transparency is laid on black as OpenCV and PIL's plain conversion do; 16-bit images are scaled to 8 bit. Of
    animations and files of several pages the first picture is taken, as viewers show it.

    Args:
        data: JPEG, PNG, WebP, BMP, GIF, TIFF, PNM or, where the installed Pillow can, AVIF bytes.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UnreadableImage: Not an image of these formats, truncated, more than `MAX_PIXELS` pixels, or pixels that are
            no 8 or 16 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
                if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
                    raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans")
                image.load()
                turn = turn_of(image)
                image = image if turn is None else image.transpose(turn)
                if image.mode == "F":
                    raise UnreadableImage("floating-point pixels of unknown range; 8 or 16 bits are read")
                if image.mode.startswith("I"):
                    values = np.asarray(image)
                    if values.dtype.itemsize > 2:
                        if values.min() < 0 or values.max() > 65535:
                            raise UnreadableImage("32-bit pixels of unknown range; 8 or 16 bits are read")
                        values = values.astype(np.uint16)
                    return np.repeat(_GREY_OF_16_BIT[values][:, :, None], 3, axis=2)
                return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image in a format that is read") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError,
            Image.DecompressionBombError) as error:
        raise UnreadableImage(" ".join(str(error).split())[:120] or type(error).__name__) from error


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright according to its EXIF block, or None.

    A damaged block is ignored.
    """
    try:
        return _TURNS.get(image.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # a damaged block raises nearly anything
        return None


def encode_png(pixels_u8: np.ndarray, level: int = 1) -> bytes:
    """Encode (H, W, 3) uint8 RGB as PNG. The same pixels give the same bytes on one machine.

    Args:
        pixels_u8: The image.
        level: zlib level 0..9; 1 is several times faster than the default and about 5 % larger.
    """
    out = io.BytesIO()
    Image.fromarray(pixels_u8).save(out, "PNG", compress_level=level)
    return out.getvalue()


def encode_jpeg(pixels_u8: np.ndarray, quality: int = JPEG_QUALITY, subsampling: str = "4:2:0") -> bytes:
    """Encode (H, W, 3) uint8 RGB as baseline JPEG; the defaults are those of OpenCV."""
    out = io.BytesIO()
    Image.fromarray(pixels_u8).save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def to_pixels(pixels_u8: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return (..., 3, H, W) float32 in [-1, 1] from (..., H, W, 3) uint8: x / 127.5 - 1.

    This is ToTensor followed by Normalize(0.5, 0.5), and InsightFace's (x - 127.5) / 127.5.
    """
    if isinstance(pixels_u8, np.ndarray):
        pixels_u8 = torch.from_numpy(np.ascontiguousarray(pixels_u8))
    channels_first = pixels_u8.movedim(-1, -3)
    # Channels-last strides would reach the network.
    pixels = channels_first.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return pixels.sub_(127.5).div_(127.5)


def to_u8(pixels: torch.Tensor) -> torch.Tensor:
    """Return (..., H, W, 3) uint8 from (..., 3, H, W) in [-1, 1]; values outside are clamped.

    As published (torchvision `save_image`): (x + 1) / 2, times 255, plus 0.5, clamped, truncated.
    """
    scaled = (pixels.float().clamp(-1, 1) + 1) / 2 * 255 + 0.5
    return scaled.clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()


def resize_pixels(pixels: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    """Resize (B, 3, H, W) bilinearly to (B, 3, size, size), half-pixel centers.

    Args:
        pixels: Images.
        size: Side of the result in pixels.
        antialias: Widen the filter when shrinking, as PIL does. The published sampler goes from 128 to
            112 without.
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    wide = pixels if pixels.dtype.itemsize >= 4 else pixels.float()  # torch has no antialiasing of bf16 on a CPU
    resized = F.interpolate(wide, (size, size), mode="bilinear", align_corners=False, antialias=antialias)
    return resized.to(pixels.dtype)


def resize_u8(pixels_u8: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (size, size, 3) with PIL's bilinear filter (antialiased)."""
    if pixels_u8.shape[:2] == (size, size):
        return pixels_u8
    return np.array(Image.fromarray(pixels_u8).resize((size, size), Image.Resampling.BILINEAR))


def fit_square(pixels_u8: np.ndarray) -> np.ndarray:
    """Cut the largest centerd square out of (H, W, 3)."""
    height, width = pixels_u8.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels_u8[top : top + side, left : left + side]
