"""Files below a folder, however deep: without recursion, and with a limit that ends in a clear line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from facesyn_cli.errors import UserError

MAX_DEPTH = 100  # folders in folders


def files_below(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Yield the files in a folder and in its folders; links to folders are not followed.

    Args:
        folder: Where to look.
        suffix: Ending of the names, with its dot; "" for any.

    Raises:
        UserError: A folder cannot be listed, or they are nested more than `MAX_DEPTH` deep.
    """
    waiting = [(os.fspath(folder), 0)]
    while waiting:
        path, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UserError(too_deep(folder, path))
        try:
            with os.scandir(path) as listed:
                items = list(listed)
        except OSError as error:
            raise UserError(f"cannot list {path}: {error.strerror}") from error
        for item in items:
            if item.is_dir(follow_symlinks=False):
                waiting.append((item.path, depth + 1))
            elif item.name.endswith(suffix) and item.is_file():
                yield Path(item.path)


def too_deep(root: Path, path: str) -> str:
    """Return what to say of a path below `root` that is too deep."""
    return f"{root}: folders are nested more than {MAX_DEPTH} deep, at {path[:60]!r}..."
