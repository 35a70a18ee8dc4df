"""What lies beside a .rec file: where its records begin, and the lists that name their images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from facesyn_cli.data.record_files import first_bytes
from facesyn_cli.data.record_index import stem_of
from facesyn_cli.data.record_names import named_labels, unescape_name
from facesyn_cli.data.recordio import scan_offsets
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_byte_lines


def record_places(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) keys in ascending order and (N,) offsets of a .rec file: from its .idx, else by going through it.

    Raises:
        UserError: The .idx or the file is damaged.
    """
    if file.with_suffix(".idx").is_file():
        return _read_idx(file.with_suffix(".idx"))
    offsets = scan_offsets(file)
    return np.arange(len(offsets)), offsets


class SampleNames:
    """The list beside a .rec file, if any: `list.txt` of DCFace or the .lst of MXNet."""

    def __init__(self, file: Path, is_escaped: bool) -> None:
        dcface = file.with_name("list.txt")
        self.is_dcface = _has_two_columns(dcface)
        self.path = dcface if self.is_dcface else file.with_suffix(".lst")
        self._is_escaped = is_escaped

    def by_key(self) -> dict[int, str]:
        """Return the name of every listed record."""
        if not self.path.is_file():
            return {}
        names = {}
        for key, path in _listed(self.path):
            stem = stem_of(path)
            names[key] = unescape_name(stem) if self._is_escaped else stem
        return names


def listed_identities(path: Path, keys: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return labels and identities after the folders of a list.

    Args:
        path: The list.
        keys: (N,) numbers of the records.

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
    keys, offsets = array("q"), array("q")
    for number, line in enumerate(read_byte_lines(path, "an index of records"), 1):
        try:
            key, offset = line.split()
            keys.append(int(key))
            offsets.append(int(offset))
        except (ValueError, OverflowError) as error:
            found = line[:60].decode("utf-8", "replace").strip()
            raise UserError(
                f"{path}, line {number}: `record, tab, byte offset` was expected, found {found!r}"
            ) from error
    if not keys:
        raise UserError(f"{path} is empty")
    order = np.argsort(np.frombuffer(keys, np.int64), kind="stable")
    sorted_keys = np.frombuffer(keys, np.int64)[order]
    twice = np.flatnonzero(np.diff(sorted_keys) == 0)
    if len(twice):
        raise UserError(f"{path} lists record {sorted_keys[twice[0]]} twice")
    return sorted_keys, np.frombuffer(offsets, np.int64)[order]


def _has_two_columns(path: Path) -> bool:
    columns = first_bytes(path, 4096).partition(b"\n")[0].strip().split(b"\t")
    return len(columns) == 2 and columns[0].isdigit() and b"/" in columns[1]


def _listed(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (record, path of the image) of every line of a list."""
    for number, data in enumerate(read_byte_lines(path, "a list of records"), 1):
        line = data.decode("utf-8", "replace").rstrip("\r\n")
        columns = line.split("\t")
        try:
            yield int(columns[0]), columns[1:][-1].replace("\\", "/")
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{path}, line {number}: `record, ..., path of the image` was expected, separated by tabs, "
                f"found {line[:60].strip()!r}"
            ) from error
