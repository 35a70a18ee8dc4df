"""Names of identities, samples and files: how they are compared, ordered and escaped.

One person has one name: macOS stores `é` as two code points (Unicode NFD), lists and Linux mostly as one (NFC). Names
are normalized to NFC before they are joined; the name of a file on disk is kept as it is for opening.

Escaping replaces a character by `%` and its code point in four hexadecimal digits:

    one_line(name)          line breaks and undecodable bytes; for messages and lists, not undone
    escape_name(name)       also `%` and slashes: one word of an index; undone by `unescape_name`
    escape_stem(sample)     also `.`: a file name without a suffix; undone by `unescape_name`
    escape_folder(identity) a relative path that cannot leave its folder; undone by `unescape_name`
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from facesyn_cli.errors import UserError

T = TypeVar("T")

SUFFIXES = frozenset((  # of images that are read
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm",
))
MAX_NAME, MAX_PATH = 255, 4095  # bytes of a file name and of a path on common file systems
_SURELY_SHORT = MAX_NAME // 4   # characters, of at most 4 bytes each
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_NOT_ONE_LINE = re.compile(rf"[{_CONTROL}\ud800-\udfff]")
_NOT_ONE_WORD = re.compile(rf"[%/\\{_CONTROL}]")
_ESCAPED = re.compile(r"%([0-9a-f]{4})")


def nfc(text: str) -> str:
    """Return a text in Unicode normalization form C."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def one_line(name: str) -> str:
    """Return a name as one line of UTF-8 text: control characters and undecodable bytes are escaped."""
    return _NOT_ONE_LINE.sub(_escaped, name)


def key_part(name: str) -> str:
    """Return a name as a part of a key: NFC, one line."""
    return one_line(nfc(name))


def escape_name(name: str, keep: str = "") -> str:
    """Return a name as one word: `%`, slashes and control characters are escaped, except those in `keep`."""
    return _NOT_ONE_WORD.sub(lambda m: m[0] if m[0] in keep else _escaped(m), name)


def escape_stem(sample: str) -> str:
    """Return a sample name as a file name without a dot."""
    return escape_name(sample).replace(".", "%002e")


@lru_cache(maxsize=256)  # images of one identity follow each other
def escape_folder(identity: str) -> str:
    """Return an identity as a relative path that stays below the folder it is unpacked into."""
    return "/".join(
        f"%002e{part[1:]}" if part.startswith(".") else part or "%002f"
        for part in escape_name(identity, keep="/").split("/")
    )


def unescape_name(name: str) -> str:
    """Undo `escape_name`, `escape_stem` and `escape_folder`."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), name)


def numbered(name: str, taken: set[str]) -> str:
    """Return a name that is not among `taken`, with a number where needed (`a-2`), and add it there."""
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(free)
    return free


def is_file_name(name: str) -> bool:
    """Return whether a name is a visible file name as it is, without escaping."""
    return bool(name) and not name.startswith(".") and not any(c in name for c in "/\\\0")


def split_suffix(name: str) -> tuple[str, str]:
    """Return a name without the suffix of an image, and that suffix; other endings belong to the name."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def without_suffix(name: str) -> str:
    """Return a name without the suffix of an image; other endings belong to the name."""
    return split_suffix(name)[0]


def check_file_names(paths: Iterable[str], folder: Path) -> None:
    """Refuse files, relative to `folder` and with `/`, whose names no file can have, before any work.

    Raises:
        UserError: A part of one is longer than 255 bytes, or the whole path longer than 4095.
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
    """Sort key under which `2` comes before `10`; total: different texts never tie.

    A run of more than 600 digits is sorted as text, since Python refuses to read numbers of some thousand digits.
    Three items for each run of digits or other characters, in one list: sorting holds the keys of all names at once.
    """
    key: list[int | str] = []
    for part in re.split(r"([0-9]+)", text):
        if part:
            is_number = part.isdecimal() and part.isascii() and len(part) <= 600
            key += (0, int(part), part) if is_number else (1, 0, part)
    return key


def sort_naturally(items: list[T], text_of: Callable[[T], str]) -> None:
    """Sort a list by the natural key of a text of each item.

    Keys take several times the memory of the texts, so a list that is in order already, such as that of a set of
    facesyn, is only checked.
    """
    if any(before > after for before, after in pairwise(natural_key(text_of(item)) for item in items)):
        items.sort(key=lambda item: natural_key(text_of(item)))


def _escaped(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):04x}"
