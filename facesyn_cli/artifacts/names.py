"""Names of identities, samples and files: normalization, ordering and limits.

macOS stores `é` as two code points (Unicode NFD), lists and Linux mostly as one (NFC). Names are compared in NFC; the
name of a file on disk is kept unchanged for opening it.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from facesyn_cli.errors import UserError

SUFFIXES = frozenset((  # of images that are read
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm",
))
MAX_NAME, MAX_PATH = 255, 4095  # bytes of a file name and of a path on common file systems
_SURELY_SHORT = MAX_NAME // 4   # characters, of at most 4 bytes each
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def nfc(text: str) -> str:
    """Return a text in Unicode normalization form C (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def one_line(name: str) -> str:
    """Return a name as one line of UTF-8: line breaks and undecodable bytes of file names become %xxxx."""
    return _ODD.sub(lambda m: f"%{ord(m[0]):04x}", name)


def key_part(name: str) -> str:
    """Return a name in the form used in keys: NFC, one line."""
    return one_line(nfc(name))


def split_suffix(name: str) -> tuple[str, str]:
    """Split the suffix of an image format off a name; other suffixes are part of the name."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def without_suffix(name: str) -> str:
    """Return a name without the suffix of an image format."""
    return split_suffix(name)[0]


def check_file_names(paths: Iterable[str], folder: Path) -> None:
    """Check that files can be written under these names, before any work.

    Args:
        paths: Files to be written, relative to `folder`, with `/`.
        folder: Output folder.

    Raises:
        UserError: A component is longer than 255 bytes, or a whole path longer than 4095.
    """
    root = len(os.fsencode(os.path.abspath(folder))) + 1
    count, first = 0, ""
    for path in paths:
        is_short = len(path) < _SURELY_SHORT and root < _SURELY_SHORT
        data = b"" if is_short else os.fsencode(path)
        if len(data) + root > MAX_PATH or any(len(part) > MAX_NAME for part in data.split(b"/")):
            count, first = count + 1, first or path
    if count:
        raise UserError(
            f"{count} files cannot be written into {folder}: names of at most {MAX_NAME} bytes and paths of at most "
            f"{MAX_PATH} are possible, and {one_line(first)[:60]!r}... is longer; rename it"
        )


def natural_key(text: str) -> list[int | str]:
    """Return a sort key under which `2` comes before `10`; different texts have different keys.

    Runs of more than 600 digits are sorted as text, because Python does not parse numbers of several thousand digits.
    The key is a flat list of three items per run, to save memory when all names of a set are sorted.
    """
    key: list[int | str] = []
    for part in re.split(r"([0-9]+)", text):
        if part:
            is_number = part.isdecimal() and part.isascii() and len(part) <= 600
            key += (0, int(part), part) if is_number else (1, 0, part)
    return key
