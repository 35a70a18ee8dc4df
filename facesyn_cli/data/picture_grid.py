"""Grids of pictures: contact sheets, strips and previews; and the PNG that readers of image sets skip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.preview_pictures import MARK
from facesyn_cli.data.pixels import decode_image, resize_u8

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


def contact_sheet(images: ImageSet, identities: int = 8, per_id: int = 8, size: int = 112) -> NDArray[np.uint8]:
    """Return the first images of identities spread evenly over the set, one row per identity.

    Args:
        images: The set.
        identities: Rows at most.
        per_id: Columns at most.
        size: Side of one image on the sheet, in pixels.

    Returns:
        (rows * size, columns * size, 3) uint8 RGB.
    """
    groups = images.by_identity()
    names = list(groups)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(identities, len(names))).round().astype(int)]
    rows = [[resize_u8(decode_image(images.read(entry)), size) for entry in groups[name][:per_id]] for name in chosen]
    return picture_grid(rows, size, gap=0)


def write_marked_png(path: Path, pixels_u8: NDArray[np.uint8], durable: bool = True) -> None:
    """Write (H, W, 3) uint8 as PNG, marked as a preview picture: it is not an image of a set."""
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("Software", MARK)
    Image.fromarray(pixels_u8).save(buffer, "PNG", pnginfo=text)
    write_bytes(path, buffer.getvalue(), durable=durable)
