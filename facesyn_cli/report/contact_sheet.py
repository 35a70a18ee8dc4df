"""Contact sheets: a picture with one row per identity."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.preview_pictures import MARK
from facesyn_cli.data.pixels import decode_image, resize_u8


def write_contact_sheet(images: ImageSet, path: Path, identities: int = 8, per_id: int = 8, size: int = 112) -> int:
    """Write a PNG with the first images of identities spread evenly over the set.

    Args:
        images: The set.
        path: PNG file to write.
        identities: Number of rows at most.
        per_id: Number of columns at most.
        size: Side of one image on the sheet, in pixels.

    Returns:
        Number of images on the sheet.
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
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("Software", MARK)  # readers of image sets skip files with this mark
    Image.fromarray(sheet).save(buffer, "PNG", pnginfo=text)
    write_bytes(path, buffer.getvalue())
    return count
