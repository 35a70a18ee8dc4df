"""A file that only grows and can be cut back to what was known to be written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import as_user_error
from facesyn_cli.errors import UserError

_BUFFER_BYTES = 1 << 20


class AppendFile:
    """Append bytes; `sync` makes them durable, and a later run reopens the file at a synced size.

    Args:
        path: The file; made when it does not exist.
        size: Bytes to keep; whatever a killed run wrote after them is cut off.

    Raises:
        UserError: The file is shorter than `size`, or cannot be written.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        try:
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
        except OSError as error:
            raise as_user_error(error, path) from error

    def write(self, data: bytes) -> int:
        """Append some bytes and return the offset at which they start.

        Raises:
            UserError: No space left.
        """
        offset = self.size
        try:
            self._file.write(data)
        except OSError as error:
            raise as_user_error(error, self.path) from error
        self.size += len(data)
        return offset

    def sync(self) -> int:
        """Flush everything to disk and return the size that is now safe.

        Raises:
            UserError: No space left.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise as_user_error(error, self.path) from error
        return self.size

    def close(self) -> None:
        """Close the file; bytes after the last `sync` may be lost when the disk is full."""
        try:
            self._file.close()
        except OSError as error:
            raise as_user_error(error, self.path) from error

    def __del__(self) -> None:
        """Close a file that an error has left open, quietly: what follows the last `sync` is cut off anyway."""
        with suppress(OSError, AttributeError):
            self._file.close()
