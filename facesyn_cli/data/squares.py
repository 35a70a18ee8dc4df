"""Images that are not square: the largest central square is taken everywhere, with a warning and a count.

The published recognizers, LDMs and benchmarks take aligned faces, which are square (112 x 112). The published code
stretches other images, or cuts them at one side; both move the face. A central square keeps its shape, as the 178 x 218
images of CelebA are commonly cut. Every command that resizes images follows this rule; commands that take images of one
exact size (`eval` and `pairs` without `resize`) refuse others, square or not.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from facesyn_cli.console import is_first_process, log
from facesyn_cli.data.pixels import FORMATS

_CHECKED = 500  # images of a training set


def is_square(data: bytes) -> bool:
    """Return whether an encoded image is square, from its header; True when that cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width == image.height
    except Exception:  # a damaged header raises nearly anything; decoding the image gives the error
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
    """Warn when images of a training set are not square, after checking a sample of them.

    Args:
        name: Of the set.
        read: From a row to the encoded image.
        total: Rows of the set; at most 500 of them, evenly spread, are checked.
    """
    if not is_first_process() or not total:
        return
    rows = np.unique(np.linspace(0, total - 1, min(total, _CHECKED)).round().astype(int)).tolist()
    cut = 0
    for row in rows:
        try:
            cut += not is_square(read(row))
        except Exception:  # training on it gives the error
            continue
    if cut:
        of = "images" if len(rows) == total else f"images checked, out of {total},"
        log.warning(f"{name}: {cut} of {len(rows)} {of} are not square; their central squares are taken")
