"""The error about an input that is not there: names the command that writes it, with the folder of the run."""

from __future__ import annotations

import shlex
from pathlib import Path

from facesyn_cli.artifacts.work import FOLDERS, OUTPUTS
from facesyn_cli.errors import UserError

_WRITERS = {FOLDERS[name]: stage for stage, name in OUTPUTS.items()}


def missing_input(path: Path, expected: str, alternative: str = "") -> UserError:
    """Return the error about a path that does not exist; the caller raises it.

    A folder of a run is recognized by its name, for example `6-records`: the message ends with the command that writes
    it. Anything else was named by the user, and the message says what was expected there.

    Args:
        path: The missing file or folder.
        expected: What should be there.
        alternative: How else to state the input, for example `--ldm PATH`.
    """
    command = writing_command(path)
    if command is None:
        return UserError(f"{path} does not exist; {expected} was expected{alternative and f': {alternative}'}")
    where = f"{path} does not exist" + ("" if path.parent.exists() else f", nor does the folder {path.parent}")
    if path.name == FOLDERS["images"]:
        return UserError(f"{where}; give a folder or zip of aligned faces with --images, or cut faces out of photos: "
                         f"{command} --images PHOTOS")
    other = f"give {alternative}, or write it with" if alternative else "it is written by"
    return UserError(f"{where}; {other}: {command}")


def unfinished_input(path: Path, command: str) -> UserError:
    """Return the error about a folder that is not finished; the caller raises it.

    Args:
        path: The folder.
        command: The command that has begun to write it.
    """
    again = writing_command(path)
    if again is None or not again.startswith(f"facesyn {command} "):
        return UserError(f"{path} is unfinished; run the same `facesyn {command}` command again to finish it")
    return UserError(f"{path} is unfinished; finish it, with the settings it was begun with: {again}")


def writing_command(path: Path) -> str | None:
    """Return the command that writes a folder of a run, as a line to paste; None for any other path."""
    stage = _WRITERS.get(path.name)
    return None if stage is None else f"facesyn {stage} --work {shlex.quote(str(path.parent))}"
