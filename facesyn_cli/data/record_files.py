"""Random access to records that are slices of large files."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.data.record_names import NameList
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import input_size, read_start


class RecordFiles:
    """Open files by number; picklable, and every process opens its own.

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


@dataclass(frozen=True)
class SliceReader:
    """Images that lie in one piece in one of several files.

    Args:
        files: The files.
        file_of: (N,) int32, number of the file.
        offsets: (N,) int64, first byte.
        sizes: (N,) int64, number of bytes.
        names: Sample name of every record.
    """

    files: RecordFiles
    file_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: NameList

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UserError: The file has become shorter, or the record is larger than an image may be.
        """
        number, offset, size = int(self.file_of[index]), int(self.offsets[index]), int(self.sizes[index])
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


def content_digest(paths: list[Path], *places: np.ndarray) -> str:
    """Return the digest of a set that somebody else wrote: names and sizes of its files, places and labels.

    Args:
        paths: The files.
        places: Arrays that say where the records lie and whose they are.
    """
    hashes = [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in places]
    return json_digest([[[path.name, path.stat().st_size] for path in paths], hashes])


def visible_files(path: Path, suffix: str) -> list[Path]:
    """Return the files of a folder that have a suffix, in either case, by name; none when it cannot be listed."""
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
