r"""Reads the index files of TFRecord sets, published ones and ours: place and identity of each record.

    <any>/<identity>/<sample>.<suffix> \t shard \t offset        ADMIS; the identity is the folder of the image
    <set> \t shard \t offset \t label                            TFace

Read into arrays of 16 bytes a record, whatever the length of its name.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.names import unescape_name
from facesyn_cli.artifacts.record_set import LABELS, natural_labels
from facesyn_cli.data.record_files import parsed_lines, stem_of
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_byte_lines, read_start

_MAX_LINE = 4096 + 96  # bytes of a path and of three numbers


@dataclass(frozen=True)
class RecordIndex:
    """Places and labels of the N records of a set.

    Args:
        path: The index file.
        files: Record files.
        file_of: (N,) int32, number of the record file.
        offsets: (N,) int64, byte at which the record starts.
        labels: (N,) int32.
        identities: Name of the identity of every label.
    """

    path: Path
    files: list[Path]
    file_of: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    identities: list[str]


def looks_like_index(path: Path) -> bool:
    """True when the first line of a file is one of the two kinds of lines."""
    if path.suffix not in (".index", ".txt"):
        return False
    try:
        columns = read_start(path, 65536).partition(b"\n")[0].split(b"\t")
    except UserError:
        return False
    return len(columns) in (3, 4) and all(column.strip().isdigit() for column in columns[1:])


def find_index(folder: Path) -> list[Path]:
    """Return the index files in a folder; of two with one stem the `.txt`, whose labels are explicit."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and looks_like_index(p)] if folder.is_dir() else []
    return [p for p in found if p.suffix == ".txt" or p.with_suffix(".txt") not in found]


def read_index(path: Path, identities: list[str] | None = None) -> RecordIndex:
    """Read an index and find its record files.

    Args:
        path: The index.
        identities: Names of the labels 0, 1, ... when the index holds labels of ours; None: the names in the
            index become labels in their natural order.

    Raises:
        UserError: Naming the line that is wrong, the record file that is missing or too short.
    """
    names: dict[bytes, int] = {}
    places: dict[tuple[bytes, int], int] = {}
    file_of, offsets, name_of = array("i"), array("q"), array("i")
    expected = "`path/identity/image, shard, offset` or `set, shard, offset, label`"
    for owner, shard, offset, name in parsed_lines(path, _columns, expected, max_line=_MAX_LINE):
        offsets.append(offset)
        file_of.append(places.setdefault((owner, shard), len(places)))
        name_of.append(names.setdefault(name, len(names)))
    if not names:
        raise UserError(f"the index {path} is empty")
    files = [_record_file(path, owner.decode("utf-8", "replace"), shard) for owner, shard in places]
    index_files = np.frombuffer(file_of, dtype=np.int32)
    starts = np.frombuffer(offsets, dtype=np.int64)
    _check_sizes(path, files, index_files, starts)
    known, label_of_name = _labels(path, [name.decode("utf-8", "replace") for name in names], identities)
    return RecordIndex(path, files, index_files, starts, label_of_name[np.frombuffer(name_of, dtype=np.int32)], known)


@dataclass(frozen=True)
class IndexSamples:
    """Sample names of an index, read from the file each time: the name without suffix, or a number within its identity.

    Args:
        path: The index.
        is_escaped: The names were written by `escape_name`.
    """

    path: Path
    is_escaped: bool

    def __iter__(self) -> Iterator[str]:
        counts: Counter[bytes] = Counter()
        for line in read_byte_lines(self.path, "an index of records", _MAX_LINE):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) == 3:
                name = stem_of(columns[0].decode("utf-8", "replace"))
                yield unescape_name(name) if self.is_escaped else name
            else:
                yield str(counts[columns[3]])
                counts[columns[3]] += 1


def _columns(line: bytes) -> tuple[bytes, int, int, bytes]:
    """Return (set or empty, shard, offset, identity or label) of one line."""
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) not in (3, 4):
        raise ValueError("number of columns")
    shard, offset = int(columns[1]), int(columns[2])
    if shard < 0 or not 0 <= offset < 2**63:
        raise ValueError("negative number, or too large")
    if len(columns) == 4:
        # With slashes in the first column ADMIS, too, takes the set's name from the index file.
        owner = b"" if b"/" in columns[0] else columns[0]
        return owner, shard, offset, b"%d" % int(columns[3])
    parts = columns[0].rsplit(b"/", 2)
    if len(parts) < 2:
        raise ValueError("the image path has no folder")
    return b"", shard, offset, parts[-2]


def _record_file(index: Path, owner: str, shard: int) -> Path:
    """Return the record file of a shard; `owner` is the set's name where the line holds one."""
    name = owner or index.stem
    file = f"{name}-{shard:05d}.tfrecord"
    places = [index.parent / name / file, index.parent / file] if owner else [index.parent / file]
    for place in places:
        if Path(name).name == name and place.is_file():
            return place
    raise UserError(f"the index {index} needs {' or '.join(str(p) for p in places)}, which does not exist")


def _check_sizes(index: Path, files: list[Path], file_of: np.ndarray, offsets: np.ndarray) -> None:
    last = np.zeros(len(files), dtype=np.int64)
    np.maximum.at(last, file_of, offsets)
    for file, offset in zip(files, last, strict=True):
        size = file.stat().st_size
        if offset >= size:
            raise UserError(f"{file} has {size} bytes but {index} has a record at byte {offset}; is it truncated?")


def _labels(index: Path, names: list[str], identities: list[str] | None) -> tuple[list[str], np.ndarray]:
    if identities is None:
        return natural_labels(names)
    labels = [int(name) if name.isdecimal() else -1 for name in names]
    if min(labels) < 0 or max(labels) >= len(identities):
        raise UserError(f"{index} holds labels that are not among the {len(identities)} of its {LABELS}")
    return identities, np.array(labels, dtype=np.int32)
