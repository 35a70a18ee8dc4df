"""Append-only files that are cut back to their last committed size when a killed run resumes.

    AppendFile       one file
    GrowingFile      one file under a temporary name, renamed when it is complete
    RecordAppender   records in numbered files, with the place of each; what every record format writes through
    Spool            images with their names, for formats that must be written in one go
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import read_json, write_json, writing
from facesyn_cli.errors import UserError

_BUFFER_BYTES = 1 << 20
_PLACE = np.dtype([("file", "<i4"), ("offset", "<i8")])
_PLACE_BYTES = struct.Struct("<iq")  # one such row
_HEAD = struct.Struct("<III")        # of a spooled image: bytes of identity, sample and image


class AppendFile:
    """Appends bytes; `sync` makes them durable, and a later run reopens the file at a synced size.

    Args:
        path: The file; created when it does not exist.
        size: Bytes to keep; anything after them was not committed and is cut off.

    Raises:
        UserError: The file is shorter than `size`, or cannot be written.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "r+b" if path.exists() else "x+b", buffering=_BUFFER_BYTES)
            found = os.fstat(self._file.fileno()).st_size
            if found < size:
                self._file.close()
                raise UserError(
                    f"{path} has {found} bytes, {size} were written before; remove its folder and start again"
                )
            self._file.truncate(size)
            self._file.seek(size)

    def write(self, data: bytes) -> int:
        """Append bytes and return the offset at which they start.

        Raises:
            UserError: No space left.
        """
        offset = self.size
        with writing(self.path):
            self._file.write(data)
        self.size += len(data)
        return offset

    def sync(self) -> int:
        """Flush to disk and return the size that is now durable.

        Raises:
            UserError: No space left.
        """
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.size

    def close(self) -> None:
        """Close the file; bytes after the last `sync` may be lost when the disk is full."""
        with writing(self.path):
            self._file.close()

    def __del__(self) -> None:
        """Close a file that an error has left open; bytes after the last `sync` are cut off on resume anyway."""
        with suppress(OSError, AttributeError):
            self._file.close()


class GrowingFile(AppendFile):
    """An AppendFile called `.<name>.part` until `publish` renames it.

    Args:
        path: Its final name. A file of that name was published by a run that was killed before its next commit, and
            is reopened.
        size: Bytes to keep.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._final = path
        unfinished = path.with_name(f".{path.name}.part")
        if path.exists():
            _rename(path, unfinished)
        super().__init__(unfinished, size)

    def publish(self) -> None:
        """Flush, close and rename the file to its final name."""
        self.sync()
        self.close()
        _rename(self.path, self._final)


class RecordAppender:
    """Appends records to numbered files; resumes at the state of the last commit.

    Args:
        path_of: Number of a file -> its final name.
        scratch: Folder for the places of the records.
        state: What `commit` returned, or {}.
        max_records: Records per file; None: no limit.
        max_bytes: Bytes per file, unless one record is larger; None: no limit.
        start: Bytes at the start of every file.
        end: Bytes at the end of every file.

    Raises:
        UserError: The state is of another release, or a file is shorter than it was at the last commit.
    """

    def __init__(
        self, path_of: Callable[[int], Path], scratch: Path, state: dict[str, Any], *, max_records: int | None = None,
        max_bytes: int | None = None, start: bytes = b"", end: bytes = b"",
    ) -> None:
        self.path_of, self._max_records, self._max_bytes = path_of, max_records, max_bytes
        self._start, self._end = start, end
        try:
            self.num_records, self._number, size = (int(state[key]) for key in ("records", "shard", "bytes"))
        except KeyError as error:
            if state:
                raise UserError(f"{scratch.parent} was begun by another release of facesyn; remove it and start again"
                                ) from error
            self.num_records = self._number = size = 0
        self._places = AppendFile(scratch / "places", self.num_records * _PLACE.itemsize)
        self._file = GrowingFile(path_of(self._number), size)

    def append(self, record: bytes, place: int = 0) -> None:
        """Append one record; the offset `place` within it is noted as its place."""
        is_full = self._max_records is not None and self.num_records == (self._number + 1) * self._max_records
        has_no_room = self._max_bytes is not None and self._file.size + len(record) > self._max_bytes
        if self._file.size and (is_full or has_no_room):
            self._publish()
            self._number += 1
            self._file = GrowingFile(self.path_of(self._number))
        if not self._file.size:
            self._file.write(self._start)
        offset = self._file.write(record)
        self._places.write(_PLACE_BYTES.pack(self._number, offset + place))
        self.num_records += 1

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to resume from."""
        self._places.sync()
        return {"records": self.num_records, "shard": self._number, "bytes": self._file.sync()}

    def finish(self, last: bytes = b"") -> np.ndarray:
        """Append bytes that are no record, publish the last file, and return the places of all records.

        Returns:
            (N,) structured array with the fields `file` and `offset`.
        """
        self._file.write(last)
        self._publish()
        self._places.close()
        return np.fromfile(self._places.path, dtype=_PLACE)

    @property
    def end_offset(self) -> int:
        """Size of the last file so far."""
        return self._file.size

    def close(self) -> None:
        """Close the open files; the set may be unfinished."""
        self._file.close()
        self._places.close()

    def _publish(self) -> None:
        self._file.write(self._end)
        self._file.publish()


def fill_in(path: Path, fields: Iterable[tuple[int, bytes]]) -> None:
    """Overwrite fields (offset, new bytes) of a finished file, for values that are known only at the end."""
    with writing(path):
        with open(path, "r+b", buffering=0) as file:
            for offset, data in fields:
                os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """One image with its names."""

    identity: str
    sample: str
    data: bytes


class Spool:
    """Holds images until all labels are known, for formats that store labels among the images.

    While the parts are converted the disk holds the images twice; a converted part may be removed.

    Args:
        scratch: Folder for the parts.
        part_bytes: Bytes after which a new part begins.
        state: What `commit` returned, or {}.
    """

    def __init__(self, scratch: Path, part_bytes: int, state: dict[str, Any]) -> None:
        self._scratch = scratch
        state = dict(state)
        self.image_bytes = int(state.pop("image_bytes", 0))
        self._records = RecordAppender(
            lambda part: scratch / f"spool-{part:05d}", scratch, state, max_bytes=part_bytes
        )
        self._places = np.empty(0, _PLACE)
        self.close = self._records.close

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one image."""
        names = identity.encode(), sample.encode()
        self._records.append(b"".join((_HEAD.pack(len(names[0]), len(names[1]), len(data)), *names, data)))
        self.image_bytes += len(data)

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to resume from."""
        return {**self._records.commit(), "image_bytes": self.image_bytes}

    def finish(self) -> list[int]:
        """Close the spool and return the number of images of every part."""
        self._places = self._records.finish()
        return np.bincount(self._places["file"]).tolist()

    def identities(self, labels: np.ndarray) -> list[str]:
        """Return the name of every label, from the (N,) labels of all records; call `finish` before."""
        noted = self._scratch / "identities.json"  # the parts that hold the names may be removed
        if not noted.is_file():
            firsts = self._places[np.unique(labels, return_index=True)[1]]
            write_json(noted, [self._identity_at(*place) for place in firsts.tolist()])
        return read_json(noted)

    def read(self, part: int) -> Iterator[SpooledRecord]:
        """Yield the records of one part, in order; call `finish` before."""
        with open(self._records.path_of(part), "rb", buffering=_BUFFER_BYTES) as file:
            for _ in range(int((self._places["file"] == part).sum())):
                sizes = _HEAD.unpack(file.read(_HEAD.size))
                identity, sample, data = (file.read(size) for size in sizes)
                yield SpooledRecord(identity.decode(), sample.decode(), data)

    def remove(self, part: int) -> None:
        """Remove a converted part; the last one stays, since a resumed run reopens it."""
        if part < int(self._places["file"][-1]):
            self._records.path_of(part).unlink(missing_ok=True)

    def _identity_at(self, part: int, offset: int) -> str:
        with open(self._records.path_of(part), "rb") as file:
            file.seek(offset)
            length, _, _ = _HEAD.unpack(file.read(_HEAD.size))
            return file.read(length).decode()


def _rename(old: Path, new: Path) -> None:
    with writing(new):
        os.replace(old, new)
