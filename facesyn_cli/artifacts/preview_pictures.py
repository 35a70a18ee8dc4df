"""The pictures of a set that `sample` makes for people: its latest images, and a contact sheet.

They lie beside the folder of the set, `4-samples.contact_sheet.png` beside `4-samples/`: every image in the folder is
an image of the set, whoever reads it. Earlier versions wrote them into the folder. There, readers of facesyn know them
by their names and by what they say of themselves, so somebody's own `strip.png` stays an image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_start

MARK = "facesyn strip"   # the PNG's text `Software`
HEAD_BYTES = 128         # the mark lies within

SHEET = "contact_sheet.png"

_NAME = re.compile(rf"strip(-\d+)?\.png|{re.escape(SHEET)}")


def strip_name(part: tuple[int, int] | None = None) -> str:
    """Return the name of the file; of a run that makes part i of n one of its own."""
    return f"strip-{part[0]}.png" if part else "strip.png"


def picture_path(folder: Path, name: str) -> Path:
    """Return where a picture of a set lies: beside the set's folder, its name in front."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.{name}") if folder.name else folder / f".{name}"


def move_pictures_out(folder: Path) -> None:
    """Move the pictures that an earlier version wrote into a set's folder to their place beside it."""
    for path in folder.glob("*.png"):
        try:
            if is_strip(path.name, lambda path=path: read_start(path, HEAD_BYTES)):
                os.replace(path, picture_path(folder, path.name))
        except (OSError, UserError):
            continue  # readers leave it out all the same


def is_strip(name: str, head: Callable[[], bytes]) -> bool:
    """Tell whether a file is such a picture.

    Args:
        name: Its name, without folders.
        head: Reads its first `HEAD_BYTES` bytes; called only where the name fits.
    """
    return _NAME.fullmatch(name) is not None and MARK.encode() in head()
