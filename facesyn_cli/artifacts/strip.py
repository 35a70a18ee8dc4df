"""The pictures that `sample` keeps beside a set, of its latest images and of people all over it: no images of the set.

Readers know them by their names and by what they say of themselves, so somebody's own `strip.png` stays an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MARK = "facesyn strip"   # the PNG's text `Software`
HEAD_BYTES = 128         # the mark lies within

SHEET = "contact_sheet.png"

_NAME = re.compile(rf"strip(-\d+)?\.png|{re.escape(SHEET)}")


def strip_name(part: tuple[int, int] | None = None) -> str:
    """Return the name of the file; of a run that makes part i of n one of its own."""
    return f"strip-{part[0]}.png" if part else "strip.png"


def is_strip(name: str, head: Callable[[], bytes]) -> bool:
    """Tell whether a file is such a picture.

    Args:
        name: Its name, without folders.
        head: Reads its first `HEAD_BYTES` bytes; called only where the name fits.
    """
    return _NAME.fullmatch(name) is not None and MARK.encode() in head()
