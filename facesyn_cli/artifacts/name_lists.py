"""Lists of image names, for the rows of an array or the images of a set.

    image_names.pkl      pickled sequence of strings `<identity>/<name>.jpg`, one per row of the array beside it
    CASIA_namelist.txt   lines `<anything>/<identity>/<name>.jpg <label>`, one space before the label
    identity_CelebA.txt  lines `<name>.jpg <identity>`
    any text             one name a line

Pickles are read by `plain_pickle`, which runs no code of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.names import key_part, nfc, split_suffix, without_suffix
from facesyn_cli.artifacts.plain_pickle import load_plain
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB, read_bytes, read_lines, read_start

ORDER_FILES = ("image_names.pkl", "image_names.txt")  # looked for beside an array of embeddings
_EXPECTED = "a list of image names"
_MAX_NAME = 4096                                       # bytes
_MAX_LINE = _MAX_NAME + 256                            # with a label
_MAX_PICKLE = 4 * GIB                                  # bytes
_LABEL = re.compile(r"[^\s./\\][^\s/\\]{0,200}")         # a valid folder name
_PICKLES = (b"\x80", b"(", b"]", b"c")                 # first bytes of pickled sequences and arrays


@dataclass(frozen=True)
class NameList:
    """Names of images, in the order of the list.

    Args:
        path: The list.
        names: (N,) names, with `/` between folders.
        labels: (N,) identity of each image, a number or a name; None if the list has no labels.
    """

    path: Path
    names: list[str]
    labels: list[str] | None


def read_name_list(path: Path) -> NameList:
    """Read a list of image names of any of the forms above.

    Raises:
        UserError: Missing, empty, damaged, not a list of names, or some lines have labels and others not.
    """
    path = Path(path)
    start = read_start(path, 1, _EXPECTED)
    if start == _PICKLES[0] or (start in _PICKLES and path.suffix == ".pkl"):
        names, labels = _read_pickle(path), None
    else:
        names, labels = _read_text(path)
    if not names:
        raise UserError(f"{path} is empty; a list of image names was expected")
    return NameList(path, names, labels)


def order_file(array: Path) -> Path | None:
    """Return the row-order list beside an array of embeddings, or None."""
    return next((array.parent / name for name in ORDER_FILES if (array.parent / name).is_file()), None)


def keys_of(names: list[str], path: Path) -> list[str]:
    """Return the key that each named image has in an ImageSet of the folder that the names are relative to.

    `a/b.jpg` has the key `a/b`; a name without a folder is an identity of its own, `b/0`; a single top folder that
    contains everything in subfolders is left out.

    Args:
        names: Names of images, with or without suffix.
        path: The list, for messages.

    Raises:
        UserError: Two names have the same key.
    """
    stems = [key_part(without_suffix(name)) for name in names]
    if len({stem.partition("/")[0] for stem in stems}) == 1 and all(stem.count("/") >= 2 for stem in stems):
        stems = [stem.partition("/")[2] for stem in stems]
    keys = [stem if "/" in stem else f"{stem}/0" for stem in stems]
    duplicate = next((key for key, count in Counter(keys).items() if count > 1), None)
    if duplicate is not None:
        raise UserError(f"{path} names the image {duplicate!r} twice; one name per row was expected")
    return keys


def _read_pickle(path: Path) -> list[str]:
    try:
        content = load_plain(read_bytes(path, _MAX_PICKLE, _EXPECTED))
    except (ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not a pickled list of image names that is safe to read: {reason}") from error
    try:
        items = content.tolist() if isinstance(content, np.ndarray) else content
    except ValueError as error:
        raise UserError(f"{path} is a damaged pickle of image names: {error}") from error
    if not isinstance(items, (list, tuple)):
        raise UserError(f"{path} holds a {type(items).__name__}; a list of image names was expected")
    return [_checked(item, f"{path}, row {row}") for row, item in enumerate(items)]


def _read_text(path: Path) -> tuple[list[str], list[str] | None]:
    names, labels = [], []
    for number, line in enumerate(read_lines(path, _EXPECTED, _MAX_LINE), 1):
        if not line.strip():
            continue
        name, label = _split_label(line)
        names.append(_checked(name, f"{path}, line {number}"))
        labels.append(label)
    unlabeled = labels.count(None)
    if unlabeled not in (0, len(labels)):
        raise UserError(f"{path}: {unlabeled} of {len(labels)} lines have no label, first line "
                        f"{labels.index(None) + 1}; `path label` on every line or on none was expected")
    return names, None if unlabeled else labels


def _split_label(line: str) -> tuple[str, str | None]:
    """Split `name.jpg 12` or `name.jpg,12`. Labels follow the suffix of an image: `person 3` is a name."""
    for separator in " ,":
        name, _, label = line.replace("\t", " ").rstrip().rpartition(separator)
        if split_suffix(name.rstrip())[1] and _LABEL.fullmatch(label) and not split_suffix(label)[1]:
            return name.rstrip(), nfc(label.lstrip("0") or "0" if label.isdecimal() else label)
    return line, None


def _checked(name: object, where: str) -> str:
    """Return a valid name with `/` between its folders.

    Raises:
        UserError: It is not the relative path of an image.
    """
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    if not isinstance(name, str):
        raise UserError(f"{where}: the name of an image was expected, found a {type(name).__name__}")
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or len(name) > _MAX_NAME or not name.isprintable():
        raise UserError(f"{where}: the name of an image was expected, found {name[:80]!r}")
    return "/".join(parts)
