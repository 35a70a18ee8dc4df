"""Contact sheet of an image set: a picture with one row per identity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.picture_grid import picture_grid
from facesyn_cli.data.pixels import decode_image, resize_u8


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
