"""Grids of pictures for contact sheets, strips and previews; and the PNG that readers of image sets skip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.preview_pictures import MARK
from facesyn_cli.data.pixels import resize_u8

GAP = 2  # pixels


def picture_grid(rows: Sequence[Sequence[NDArray[np.uint8] | None]], size: int, gap: int = GAP) -> NDArray[np.uint8]:
    """Lay square pictures on white, row below row.

    Args:
        rows: (S, S, 3) uint8 pictures; None is an empty place. Rows may differ in length.
        size: Side to which every picture is resized, in pixels.
        gap: Pixels between two pictures.
    """
    step, columns = size + gap, max(map(len, rows))
    canvas = np.full((len(rows) * step - gap, columns * step - gap, 3), 255, dtype=np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            if picture is not None:
                canvas[top * step : top * step + size, left * step : left * step + size] = resize_u8(picture, size)
    return canvas


def write_marked_png(path: Path, pixels_u8: NDArray[np.uint8], durable: bool = True) -> None:
    """Write (H, W, 3) uint8 as PNG, marked as a preview picture: it is not an image of a set."""
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("Software", MARK)
    Image.fromarray(pixels_u8).save(buffer, "PNG", pnginfo=text)
    write_bytes(path, buffer.getvalue(), durable=durable)
