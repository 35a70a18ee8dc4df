"""A file that is written under a temporary name and gets its own when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import as_user_error
from facesyn_cli.data.append_file import AppendFile


class GrowingFile(AppendFile):
    """An AppendFile named `.<name>.part` until `publish`; killed after that, it goes on where it was.

    Args:
        path: Its name when it is whole.
        size: Bytes to keep.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.whole = path
        unfinished = path.with_name(f".{path.name}.part")
        if path.exists():  # killed after the rename, before the next commit
            _rename(path, unfinished)
        super().__init__(unfinished, size)

    def publish(self) -> None:
        """Flush, close and give the file its name."""
        self.sync()
        self.close()
        _rename(self.path, self.whole)


def _rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        raise as_user_error(error, new) from error
