"""Settings that a run chooses on its machine and that all runs which write one folder must share.

Parts of a set may start at the same moment on different machines. The first choice is kept in `.agreed-NAME.json`,
until the header of the finished folder records it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import read_json, temporary_name, write_json, writing
from facesyn_cli.artifacts.header import read_header, read_started
from facesyn_cli.artifacts.output import AGREED, refuse_foreign_content
from facesyn_cli.errors import UserError


def started_with(folder: Path, name: str) -> str | None:
    """Return a setting of type text that a folder was started with; None for a new folder."""
    header = read_started(folder) or read_header(folder)
    value = None if header is None else header.config.get("identity", {}).get(name)
    return value if isinstance(value, str) else None


def agree(folder: Path, kind: str, name: str, choose: Callable[[], str]) -> str:
    """Return the value of a setting for a folder: what it was started with, else what the first run chose.

    Args:
        folder: The folder, which is created.
        kind: Kind of artifact that it is to be.
        name: The setting.
        choose: Returns the value of this run; called where no other run has chosen.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    refuse_foreign_content(folder, kind)
    if (value := started_with(folder, name)) is not None:
        return value
    path = folder / f"{AGREED}{name}.json"
    if not path.is_file():
        value = choose()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _publish(path, value)
    found = read_json(path)
    if not isinstance(found, str):
        raise UserError(f"{path} holds {str(found)[:80]!r}; a value of {name} was expected; remove the file")
    return found


def _publish(path: Path, value: str) -> None:
    """Write a file unless another process has written it; it appears whole."""
    own = path.with_name(temporary_name(path.name))
    write_json(own, value)
    try:
        os.link(own, path)  # fails where the file exists, unlike a rename
    except FileExistsError:
        pass
    except OSError:         # no hard links on this file system
        with writing(path):
            if not path.exists():
                os.replace(own, path)
    finally:
        with suppress(FileNotFoundError):
            own.unlink()
