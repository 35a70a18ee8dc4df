"""Random access to records in large files, and what else the readers of record formats share."""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.artifacts.names import one_line
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_LINE, input_size, read_byte_lines, read_start

T = TypeVar("T")

_REASONS_SHOWN = 8
_MAX_REASONS = 50        # counted separately: a set may have as many endings as files
_OTHERS = "of other kinds"


class RecordFiles:
    """Open files by number; picklable, every process opens its own descriptors.

    Args:
        paths: The files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._lock = threading.Lock()
        self._process, self._descriptors = 0, {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of one file, fewer where it ends.

        Raises:
            UserError: The file is gone or cannot be read.
        """
        try:
            return os.pread(self._descriptor(number), size, offset)
        except OSError as error:
            raise UserError(f"cannot read {self.paths[number]}: {error.strerror}") from error

    def size(self, number: int) -> int:
        """Return the size of one file in bytes."""
        try:
            return os.fstat(self._descriptor(number)).st_size
        except OSError as error:
            raise UserError(f"cannot read {self.paths[number]}: {error.strerror}") from error

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._descriptors = os.getpid(), {}
            if number not in self._descriptors:
                path = self.paths[number]
                input_size(path, expected="a file of records")
                self._descriptors[number] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return self._descriptors[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __del__(self) -> None:
        if self.__dict__.get("_process") == os.getpid():
            for descriptor in self._descriptors.values():
                os.close(descriptor)


class NameList:
    """A growing list of names: one byte a character and eight bytes a name instead of a Python object each."""

    def __init__(self) -> None:
        self.text, self._ends = bytearray(), array("q")

    def append(self, name: str) -> None:
        """Add a name; characters that cannot be encoded become question marks."""
        self.text += name.encode("utf-8", "replace")
        self._ends.append(len(self.text))

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self.text[start : self._ends[index]].decode("utf-8")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class LeftOut:
    """Counts what a reader found and did not use, by reason, for one warning and for the header."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that is not used: its kind as a plural (`links`); the first name of each kind is shown."""
        reason = one_line(reason)
        if reason not in self.counts and len(self.counts) >= _MAX_REASONS:
            reason = _OTHERS
        self.counts[reason] += count
        self._first.setdefault(reason, name)

    def say(self, where: object, used: int) -> None:
        """Warn in one line, with the number of images that are used, unless everything is used."""
        if not self.counts:
            return
        parts = [f"{count} {reason} (first {one_line(self._first[reason])!r})"
                 for reason, count in self.counts.most_common(_REASONS_SHOWN)]
        more = len(self.counts) - len(parts)
        tail = f" and {more} other kinds" if more else ""
        log.warning(f"{where}: {used} images are read; left out: {', '.join(parts)}{tail}")


@dataclass(frozen=True)
class FileRecords:
    """Images that lie in records of one or several files: the reader of most record formats.

    Args:
        files: The files.
        file_of: (N,) int32, number of the file of each record.
        offsets: (N,) int64, its first byte.
        names: Sample name of every record; may be iterated several times.
        read_at: Returns the image of the record at (files, number of the file, offset), or raises ValueError; None:
            `sizes` bytes from there.
        sizes: (N,) int64, number of bytes, where the image lies in one piece.
    """

    files: RecordFiles
    file_of: np.ndarray
    offsets: np.ndarray
    names: Iterable[str]
    read_at: Callable[[RecordFiles, int, int], bytes] | None = None
    sizes: np.ndarray | None = None

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return self.files.paths

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UserError: The record is damaged, truncated or larger than an image may be, or its file is gone.
        """
        number, offset = int(self.file_of[index]), int(self.offsets[index])
        if self.read_at is not None:
            try:
                return self.read_at(self.files, number, offset)
            except ValueError as error:
                raise UserError(f"{self.files.paths[number]}, record at byte {offset}: {error}") from error
        size = int(self.sizes[index])
        if size > MAX_FILE_BYTES:
            raise UserError(f"{self.files.paths[number]}, byte {offset}: an image of {size} bytes; "
                            f"images of at most {MAX_FILE_BYTES} are read")
        data = self.files.read(number, offset, size)
        if len(data) != size:
            raise UserError(f"{self.files.paths[number]} ends inside the image at byte {offset}; is it truncated?")
        return data

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record."""
        return iter(self.names)


def parsed_lines(
    path: Path, parse: Callable[[bytes], T], expected: str, kind: str = "an index of records", max_line: int = MAX_LINE
) -> Iterator[T]:
    """Yield `parse(line)` for every line of a list; `expected` and `kind` describe a line and the file in messages.

    Raises:
        UserError: The file cannot be read, or `parse` raises ValueError, IndexError or OverflowError.
    """
    for number, line in enumerate(read_byte_lines(path, kind, max_line), 1):
        try:
            value = parse(line)
        except (ValueError, IndexError, OverflowError) as error:
            found = line[:80].decode("utf-8", "replace").strip()
            raise UserError(f"{path}, line {number}: {expected} was expected, separated by tabs, found {found!r}"
                            ) from error
        yield value


def content_digest(paths: list[Path], *places: np.ndarray) -> str:
    """Return the digest of a set without a header of ours: names and sizes of its files, offsets and labels."""
    hashes = [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in places]
    return json_digest([[[path.name, path.stat().st_size] for path in paths], hashes])


def visible_files(path: Path, suffix: str) -> list[Path]:
    """Return the visible files of a folder with a suffix, in either case, by name; none when it cannot be listed."""
    try:
        return sorted(
            p for p in path.iterdir()
            if p.name.lower().endswith(suffix) and p.is_file() and not p.name.startswith(".")
        )
    except OSError:
        return []


def first_bytes(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; empty when there is no such file or it cannot be read."""
    try:
        return read_start(path, size)
    except UserError:
        return b""


def stem_of(path: str) -> str:
    """Return the name of a file without folders and without its last suffix, as pathlib's `stem`; many times faster."""
    name = path.rstrip("/").rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and suffix else name


def formats_package(name: str) -> ModuleType:
    """Import a package of the extra `formats`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'this record format needs a package that is not installed ({name}): pip install "facesyn[formats]"'
        ) from error
