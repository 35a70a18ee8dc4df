"""A folder that appears under its name only when everything in it is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facesyn_cli.artifacts.files import TEMPORARY_PREFIX, explain
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.errors import UserError


def require_free(out: Path) -> None:
    """Make sure that nothing is in a folder that is to be made.

    Raises:
        UserError: There is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; give a new folder with --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the block ends without an error."""
    temporary = out.parent / f"{TEMPORARY_PREFIX}{out.name}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(out.parent, f"convert-{out.name}"):
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            try:
                temporary.mkdir()
                yield temporary
                os.replace(temporary, out)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain(error, out) from error
