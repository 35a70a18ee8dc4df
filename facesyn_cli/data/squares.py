"""Images that are not square: everywhere the largest central square is taken, said and counted.

The published recognizers, LDMs and benchmarks take aligned faces, which are square (112 x 112). The published code
stretches other images, or cuts them at one side; both move the face. A central square keeps it in shape, which is how
the 178 x 218 images of CelebA are commonly cut. It is the rule of every command that brings images to a size; commands
that take images of one exact size (`eval` and `pairs` without `resize`) refuse others, square or not.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from facesyn_cli.console import is_first_process, log
from facesyn_cli.data.pixels import FORMATS

_LOOKED_AT = 500  # images of a training set


def is_square(data: bytes) -> bool:
    """Tell from the header of an encoded image whether it is square; True where that cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width == image.height
    except Exception:  # a damaged header raises nearly anything; whoever decodes the image says so
        return True


def say_cut(name: object, cut: int, total: int) -> None:
    """Warn that images were cut, where any was.

    Args:
        name: Of the set, or its folder.
        cut: Images of which the central square was taken.
        total: Images that were read.
    """
    if cut:
        log.warning(f"{name}: {cut} of {total} images are not square; their central squares were taken")


def say_if_not_square(name: object, read: Callable[[int], bytes], total: int) -> None:
    """Look at some images of a set that is about to be trained on, and warn when they are not square.

    Args:
        name: Of the set.
        read: From a row to the encoded image.
        total: Rows of the set; at most 500 of them, evenly spread, are looked at.
    """
    if not is_first_process() or not total:
        return
    rows = np.unique(np.linspace(0, total - 1, min(total, _LOOKED_AT)).round().astype(int)).tolist()
    cut = 0
    for row in rows:
        try:
            cut += not is_square(read(row))
        except Exception:  # whoever trains on it says so
            continue
    if cut:
        of = "images" if len(rows) == total else f"images looked at, out of {total},"
        log.warning(f"{name}: {cut} of {len(rows)} {of} are not square; their central squares are taken")
