"""Reading sets of .rec files: where the records start, their labels, and the lists beside the file that name them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from facesyn_cli.artifacts.names import unescape_name
from facesyn_cli.data.record_files import LeftOut, first_bytes, parsed_lines, stem_of
from facesyn_cli.data.record_labels import MAX_LABEL, named_labels
from facesyn_cli.data.recordio import count_unlisted, read_heads, scan_offsets
from facesyn_cli.errors import UserError

MAX_RECORDS = 2**24  # the last integer before 32-bit floats leave some out


def record_places(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) keys in ascending order and (N,) offsets of a .rec file: from its .idx, else by going through it.

    Raises:
        UserError: The .idx or the file is damaged.
    """
    if file.with_suffix(".idx").is_file():
        return _read_idx(file.with_suffix(".idx"))
    offsets = scan_offsets(file)
    return np.arange(len(offsets)), offsets


def list_beside(file: Path) -> tuple[Path, bool]:
    """Return the list that names the records of a .rec file, and whether it is DCFace's `list.txt`."""
    dcface = file.with_name("list.txt")
    is_dcface = _has_two_columns(dcface)
    return dcface if is_dcface else file.with_suffix(".lst"), is_dcface


@dataclass(frozen=True)
class ListedSamples:
    """Sample names of records, read from the list beside their file each time; unlisted records have their number.

    Args:
        path: The list; need not exist.
        keys: (N,) numbers of the records.
        is_escaped: The names were written by `escape_name`.
    """

    path: Path
    keys: np.ndarray
    is_escaped: bool

    def __iter__(self) -> Iterator[str]:
        names = {}
        for key, path in _listed(self.path) if self.path.is_file() else ():
            stem = stem_of(path)
            names[key] = unescape_name(stem) if self.is_escaped else stem
        return (names.get(key, str(key)) for key in self.keys.tolist())


def read_labels(
    file: Path, keys: np.ndarray, offsets: np.ndarray, left_out: LeftOut
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, offsets and integer labels of the records that hold images.

    Args:
        file: The .rec file.
        keys: (N,) numbers of all records.
        offsets: (N,) where they start.
        left_out: Counts the records that are neither images nor the labels of identities.

    Raises:
        UserError: The file is damaged or truncated, or a label is no whole number.
    """
    heads = read_heads(file, offsets)
    is_image = heads.has_image.copy()
    if unlisted := count_unlisted(file, offsets, heads.ends):
        left_out.add(f"records that {file.with_suffix('.idx').name} does not list", file.name, unlisted)
    empty = np.flatnonzero(~heads.has_image & (heads.flags == 0))
    if len(empty):
        left_out.add("records without an image", f"record {keys[empty[0]]}", len(empty))
    if keys[0] == 0 and heads.flags[0] > 0 and not is_image[0]:
        end = float(heads.labels[0])
        if not (1 <= end <= 2**31) or (end <= MAX_RECORDS and int(is_image[keys < end].sum()) != int(end) - 1):
            raise UserError(f"{file}: record 0 announces images up to record {end - 1:g}, but {int(is_image.sum())} "
                            "were found; is the file truncated, or its .idx of another?")
        if end <= MAX_RECORDS:
            behind = np.flatnonzero(is_image & (keys >= end))
            if len(behind):
                left_out.add("images that record 0 does not announce", f"record {keys[behind[0]]}", len(behind))
            is_image &= keys < end
    values = heads.labels[is_image]
    if not len(values):
        raise UserError(f"{file} holds no images")
    with np.errstate(invalid="ignore"):
        is_wrong = ~((values >= 0) & (values < MAX_LABEL) & (values == np.floor(values)))
    if is_wrong.any():
        row = int(is_wrong.argmax())
        key = keys[is_image][row]
        raise UserError(f"{file}, record {key}: a whole number was expected as label, found {values[row]:g}")
    return keys[is_image], offsets[is_image], values.astype(np.int64)


def listed_identities(path: Path, keys: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return labels and identities of the records with (N,) numbers from the folders of the paths in a list.

    Raises:
        UserError: A record is not in the list.
    """
    names: dict[str, int] = {}
    number_of: dict[int, int] = {}
    for key, image in _listed(path):
        number_of[key] = names.setdefault(PurePosixPath(image).parent.name, len(names))
    try:
        numbers = np.array([number_of[key] for key in keys.tolist()])
    except KeyError as error:
        raise UserError(f"{path} has no line for record {error.args[0]}; is it the list of another set?") from error
    return named_labels(numbers, list(names))


def _read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) keys in ascending order and their offsets."""
    def parse(line: bytes) -> array:
        key, offset = line.split()
        return array("q", (int(key), int(offset)))

    rows = array("q")
    for row in parsed_lines(path, parse, "`record, byte offset`"):
        rows += row
    if not rows:
        raise UserError(f"{path} is empty")
    keys, offsets = np.frombuffer(rows, np.int64).reshape(-1, 2).T
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(twice):
        raise UserError(f"{path} lists record {keys[order][twice[0]]} twice")
    return keys[order], offsets[order]


def _has_two_columns(path: Path) -> bool:
    columns = first_bytes(path, 4096).partition(b"\n")[0].strip().split(b"\t")
    return len(columns) == 2 and columns[0].isdigit() and b"/" in columns[1]


def _listed(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (record, path of the image) of every line of a list."""
    def parse(line: bytes) -> tuple[int, str]:
        columns = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        return int(columns[0]), columns[1:][-1].replace("\\", "/")

    return parsed_lines(path, parse, "`record, ..., path of the image`", "a list of records")
