"""Contact sheets: a picture with one row per identity."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.preview_pictures import MARK
from facesyn_cli.data.pixels import decode_image, resize_u8


def contact_sheet(
    images: ImageSet, identities: int = 8, per_id: int = 8, size: int = 112
) -> tuple[NDArray[np.uint8], int]:
    """Draw the first images of identities spread evenly over the set, one row per identity.

    Args:
        images: The set.
        identities: Rows at most.
        per_id: Columns at most.
        size: Side of one image on the sheet, in pixels.

    Returns:
        (rows * size, columns * size, 3) uint8 RGB, and the number of images on it.
    """
    groups = images.by_identity()
    names = list(groups)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(identities, len(names))).round().astype(int)]
    columns = min(per_id, max(len(groups[name]) for name in chosen))
    sheet = np.full((len(chosen) * size, columns * size, 3), 255, np.uint8)
    count = 0
    for row, name in enumerate(chosen):
        for column, entry in enumerate(groups[name][:columns]):
            tile = resize_u8(decode_image(images.read(entry)), size)
            sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = tile
            count += 1
    return sheet, count


def write_contact_sheet(images: ImageSet, path: Path, identities: int = 8, per_id: int = 8, size: int = 112) -> int:
    """Write a contact sheet as PNG, marked so that readers of image sets skip it; return the number of its images."""
    sheet, count = contact_sheet(images, identities, per_id, size)
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("Software", MARK)
    Image.fromarray(sheet).save(buffer, "PNG", pnginfo=text)
    write_bytes(path, buffer.getvalue())
    return count
