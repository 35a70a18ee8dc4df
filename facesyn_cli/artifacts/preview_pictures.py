"""Preview pictures that `sample` writes: a strip of its latest images and a contact sheet.

They are stored beside the folder of the set (`4-samples.contact_sheet.png` beside `4-samples/`), because every image
inside the folder belongs to the set. Earlier releases wrote them into the folder; there they are recognized by name and
by a mark in the PNG, so that other images called `strip.png` stay part of the set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_start

MARK = "facesyn strip"   # PNG text chunk `Software`
HEAD_BYTES = 128         # number of leading bytes that contain the mark

SHEET = "contact_sheet.png"

_NAME = re.compile(rf"strip(-\d+)?\.png|{re.escape(SHEET)}")


def strip_name(part: tuple[int, int] | None = None) -> str:
    """Return the file name of the strip; each part (i, n) of a sharded run has its own."""
    return f"strip-{part[0]}.png" if part else "strip.png"


def picture_path(folder: Path, name: str) -> Path:
    """Return the path of a picture of a set: beside the folder, with the folder's name as prefix."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}.{name}") if folder.name else folder / f".{name}"


def move_pictures_out(folder: Path) -> None:
    """Move pictures that an earlier release wrote into the folder of a set to their place beside it."""
    for path in folder.glob("*.png"):
        try:
            if is_strip(path.name, lambda path=path: read_start(path, HEAD_BYTES)):
                os.replace(path, picture_path(folder, path.name))
        except (OSError, UserError):
            continue  # readers skip it


def is_strip(name: str, head: Callable[[], bytes]) -> bool:
    """Return whether a file is a preview picture; `head` reads its first `HEAD_BYTES` bytes if the name matches."""
    return _NAME.fullmatch(name) is not None and MARK.encode() in head()
