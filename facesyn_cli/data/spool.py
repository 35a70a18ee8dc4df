"""Records on their way into files that can only be written in one go.

Labels are known when the last image has been read, and some formats store them among the images. Such a
writer appends to parts of a spool, which survives a kill as every growing file does, and converts part by
part at the end. While it converts, the disk holds the images twice; a part that is converted may be removed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.data.append_file import AppendFile

_HEAD = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """One image with its names."""

    identity: str
    sample: str
    data: bytes


class Spool:
    """Append records, commit, read them back part by part.

    Args:
        scratch: Folder for the parts.
        part_bytes: Bytes after which a new part begins.
        state: What `commit` returned, or {}.
    """

    def __init__(self, scratch: Path, part_bytes: int, state: dict[str, Any]) -> None:
        self._scratch, self._part_bytes = scratch, part_bytes
        self.counts: list[int] = list(state.get("counts", [0]))
        self.num_bytes = int(state.get("all_bytes", 0))
        self._file = AppendFile(self._path(len(self.counts) - 1), int(state.get("bytes", 0)))
        self._owners = AppendFile(scratch / "owners", int(state.get("owners", 0)))
        self._last: str | None = None

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one image."""
        names = identity.encode(), sample.encode()
        record = b"".join((_HEAD.pack(len(names[0]), len(names[1]), len(data)), *names, data))
        if self.counts[-1] and self._file.size + len(record) > self._part_bytes:
            self._file.sync()
            self._file.close()
            self.counts.append(0)
            self._file = AppendFile(self._path(len(self.counts) - 1))
        self._file.write(record)
        if identity != self._last:
            self._owners.write(_HEAD.pack(sum(self.counts) & 0xFFFFFFFF, sum(self.counts) >> 32, len(names[0])))
            self._owners.write(names[0])
            self._last = identity
        self.counts[-1] += 1
        self.num_bytes += len(data)

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to restore from."""
        return {
            "counts": list(self.counts), "all_bytes": self.num_bytes,
            "bytes": self._file.sync(), "owners": self._owners.sync(),
        }

    def close(self) -> None:
        """Close the open files."""
        self._file.close()
        self._owners.close()

    def identities(self, labels: np.ndarray) -> list[str]:
        """Return the name of every label; call `commit` before.

        Args:
            labels: (N,) label of every record.
        """
        names = [""] * (int(labels.max()) + 1)
        with open(self._owners.path, "rb") as file:
            while head := file.read(_HEAD.size):
                low, high, length = _HEAD.unpack(head)
                names[labels[high << 32 | low]] = file.read(length).decode()
        return names

    def read(self, part: int) -> Iterator[SpooledRecord]:
        """Yield the records of one part, in order; call `commit` before."""
        with open(self._path(part), "rb", buffering=1 << 20) as file:
            for _ in range(self.counts[part]):
                sizes = _HEAD.unpack(file.read(_HEAD.size))
                identity, sample, data = (file.read(size) for size in sizes)
                yield SpooledRecord(identity.decode(), sample.decode(), data)

    def remove(self, part: int) -> None:
        """Remove a part that is no longer needed; the last one stays, because it may be opened again."""
        if part < len(self.counts) - 1:
            self._path(part).unlink(missing_ok=True)

    def _path(self, part: int) -> Path:
        return self._scratch / f"spool-{part:05d}"
