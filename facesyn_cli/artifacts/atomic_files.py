"""Write files atomically: to a temporary name in the same folder, flushed to disk, then renamed.

Temporary names start with `.tmp-` and end with host, process and thread; those of killed processes are removed when the
folder is opened again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted import parsing as untrusted

TEMPORARY_PREFIX = ".tmp-"
_LONG_NAME = 200  # bytes; file systems allow 255


@contextmanager
def write_atomically(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    Args:
        path: Final name; its folder is created.
        durable: Flush to disk before the rename, so that the file survives a power cut. Writers of many small
            files turn it off; while the system stays up, a torn file is impossible either way.

    Raises:
        UserError: No space left, read-only folder or no permission.
    """
    temporary = path.parent / temporary_name(path.name)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a UserError where the block, which writes `path`, fails with an OSError that a user can act on."""
    try:
        yield
    except OSError as error:
        raise as_user_error(error, path) from error


def as_user_error(error: OSError, path: Path) -> Exception:
    """Return a UserError for an OSError that a user can act on, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left while writing {path}; free some space and run the same command again")
    if error.errno == errno.EFBIG:
        return UserError(f"cannot write {path}: the file would be larger than the file system or `ulimit -f` allows")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: {os.strerror(error.errno)}")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"cannot write {path}: its name is longer than this file system allows")
    if error.errno == errno.EISDIR:
        return UserError(f"cannot write {path}: it is a folder, a file was expected")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return UserError(f"cannot write {path}: {error.filename or path.parent} is a file, a folder was expected")
    return error


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a whole binary file atomically."""
    with write_atomically(path, durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically, with line feeds on every system.

    Undecodable bytes of file names become \\udcXX, which JSON reads back unchanged.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys and two spaces of indentation, atomically."""
    write_text(path, _as_json(value))


def update_text(path: Path, text: str) -> None:
    """Write a text file like `write_text`, unless its content is the same."""
    with suppress(OSError):  # missing or unreadable
        if path.read_bytes() == text.encode("utf-8", "backslashreplace"):
            return
    write_text(path, text)


def update_json(path: Path, value: Any) -> None:
    """Write JSON like `write_json`, unless the content of the file is the same."""
    update_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing, unreadable, too large or not JSON; see `untrusted/parsing.py`.
    """
    return untrusted.read_json(path)


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes anywhere below `folder`."""
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        _remove(path)


def temporary_name(name: str) -> str:
    """Return a temporary name unique to this thread, process and host; long names are replaced by their digest."""
    if len(os.fsencode(name)) > _LONG_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f"{TEMPORARY_PREFIX}{name}-{host_tag()}-{os.getpid()}-{threading.get_ident()}"


@functools.cache
def host_tag() -> str:
    """Return eight hex digits of the process namespace: host, boot and container."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read())
    return f"{zlib.crc32(repr(parts).encode()):08x}"


def _remove(path: Path) -> None:
    if os.path.isdir(path) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
                raise  # in these two cases nothing was written: a parent is a file, or the name is too long
