"""Atomic output folders and files: complete or absent, never overwritten.

A command that runs again recognizes its own result by the header of the folder (`completed_directory`) or, where the
format has no room for a header, by comparing the new content with the existing one.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facesyn_cli.artifacts.atomic_files import TEMPORARY_PREFIX, remove_temporaries, write_atomically, writing
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import HEADER, Header, read_header
from facesyn_cli.artifacts.lock import Lock
from facesyn_cli.artifacts.output import check_same
from facesyn_cli.console import log
from facesyn_cli.errors import UserError


def completed_directory(out: Path, expected: Header) -> Header | None:
    """Return the header of a folder made by the same command with the same settings; None if there is no folder yet.

    Raises:
        UserError: The folder has other content; the message shows the differences.
    """
    require_new(out)
    header = read_header(out) if out.is_dir() else None
    if header is not None:
        check_same(out, header, expected)
        log.info(f"{out} is finished already")
    return header


def require_new(out: Path) -> None:
    """Require that an output folder is absent, empty, or made by facesyn.

    Raises:
        UserError: There is something else.
    """
    if out.is_dir() and ((out / HEADER).is_file() or not _held(out)):
        return
    if out.exists():
        raise UserError(f"{out} exists and was not made by facesyn; give a new folder with --out")


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the block ends without an error.

    An existing `out` with the same content is left unchanged, so a command can always run again.

    Raises:
        UserError: It exists with other content, another process is writing it, or it cannot be written.
    """
    temporary = out.parent / f"{TEMPORARY_PREFIX}{out.name}"
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(out.parent, f"convert-{out.name}"):
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            try:
                temporary.mkdir()
                yield temporary
                if out.is_dir() and _held(out):
                    _require_same(temporary, out)
                    log.info(f"{out} is finished already")
                    return
                if out.is_dir():
                    remove_temporaries(out)
                os.replace(temporary, out)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out` that becomes `out` when the block ends without an error.

    An existing `out` with the same content is left unchanged, so a command can always run again.

    Raises:
        UserError: It exists with other content, another process is writing it, or it cannot be written.
    """
    if out.exists() and not out.is_file():
        raise UserError(f"{out} exists and is not a file; choose another --out")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with Lock(out.parent, f"file-{out.name}"):
            for left in out.parent.iterdir():
                if left.name.startswith(f"{TEMPORARY_PREFIX}{out.name}-"):
                    left.unlink(missing_ok=True)  # of a run that was killed
            made = out.with_name(f"{TEMPORARY_PREFIX}{out.name}-made")
            try:
                yield made
                if out.exists():
                    if not filecmp.cmp(made, out, shallow=False):
                        raise UserError(f"{out} exists with other content ({file_digest(out)[:19]}; this command makes "
                                        f"{file_digest(made)[:19]}); choose another --out")
                    log.info(f"{out} is finished already")
                    return
                with write_atomically(out) as temporary:
                    os.replace(made, temporary)
            finally:
                made.unlink(missing_ok=True)


def _held(folder: Path) -> list[Path]:
    """Return the content of a folder without leftovers of killed processes."""
    return [path for path in folder.iterdir() if not path.name.startswith((TEMPORARY_PREFIX, ".lock-"))]


def _require_same(made: Path, found: Path) -> None:
    """Compare two folders, file by file.

    Raises:
        UserError: They differ; names the files.
    """
    names = {path.relative_to(folder) for folder in (made, found) for path in folder.rglob("*") if path.is_file()}
    differences = []
    for name in sorted(names):
        if not (found / name).is_file():
            differences.append(f"{name.as_posix()} is missing there")
        elif not (made / name).is_file():
            differences.append(f"{name.as_posix()} would not be made")
        elif not filecmp.cmp(made / name, found / name, shallow=False):
            differences.append(f"{name.as_posix()} differs")
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(f"{found} exists with other content ({'; '.join(differences[:5])}{more}); "
                        "give a new folder with --out")
