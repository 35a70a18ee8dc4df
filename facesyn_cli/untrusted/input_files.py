"""Open input files: regular files of limited size only; every failure is a one-line `UserError`.

Opening a FIFO, a socket or a device can block the process forever, also for signals. All paths from users, and from
files of users, are opened or checked here before another library opens them.

    open_input(path)        a binary file object
    read_bytes(path)        the whole content, below a limit
    read_start(path, 9)     its first bytes, to detect its format
    read_text(path)         the content as UTF-8 text
    read_lines(path)        line by line, for lists of any length
    input_size(path)        the check only, for libraries that open a path themselves
    check_input(path)       the check for a file or folder
    inside(folder, name)    the path of a file that another file names, restricted to its folder
    files_below(folder)     all files below a folder

Links are followed. `limit` is the largest size in bytes, None any; `expected` is what the file should be, for messages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from facesyn_cli import signals
from facesyn_cli.errors import UserError

KIB, MIB, GIB = 2**10, 2**20, 2**30
MAX_LINE = MIB                      # bytes of a line of a list
MAX_IMAGE = 256 * MIB               # bytes of an encoded image
MAX_FOLDER_DEPTH = 100              # levels of folders that are searched
_LINES_PER_CHECK = 4096
_KINDS = ((stat.S_ISFIFO, "a FIFO (named pipe)"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
          (stat.S_ISBLK, "a device"), (stat.S_ISDIR, "a folder"))


def input_size(path: Path | str, limit: int | None = None, expected: str = "a file") -> int:
    """Return the size of a regular file in bytes; the file is not opened.

    Raises:
        UserError: It does not exist, is not a regular file, or is larger than the limit.
    """
    info = _stat(path, expected)
    if info is None:
        raise UserError(f"{path} does not exist; {expected} was expected")
    _check(path, info, limit, expected)
    return info.st_size


def check_input(path: Path | str, expected: str = "a file or folder") -> None:
    """Check that a path is a regular file, a folder, or absent.

    Raises:
        UserError: It is a FIFO, a socket or a device, or its status cannot be read.
    """
    info = _stat(path, expected)
    if info is not None and not stat.S_ISDIR(info.st_mode):
        _check(path, info, None, expected)


def open_input(path: Path | str, limit: int | None = None, expected: str = "a file") -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        UserError: It cannot be opened, is not a regular file, or is larger than the limit.
    """
    input_size(path, limit, expected)  # before opening, which can have effects on a device
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    with _reading(path, expected):
        descriptor = os.open(path, flags)  # does not block if the file was replaced by a FIFO in between
    try:
        _check(path, os.fstat(descriptor), limit, expected)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path | str, limit: int, expected: str = "a file") -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        UserError: As `open_input`, or reading fails.
    """
    with open_input(path, limit, expected) as file, _reading(path, expected):
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)  # allocates what is requested
    if len(data) > limit:
        raise UserError(_too_large(path, len(data), limit, expected))
    return data


def read_start(path: Path | str, size: int, expected: str = "a file") -> bytes:
    """Return the first `size` bytes of a regular file, fewer of a shorter one.

    Raises:
        UserError: As `open_input`, or reading fails.
    """
    with open_input(path, expected=expected) as file, _reading(path, expected):
        return file.read(size)


def read_text(path: Path | str, limit: int = 64 * MIB, expected: str = "a text file") -> str:
    """Return the content of a UTF-8 text file, without a byte-order mark, line ends as they are.

    Raises:
        UserError: As `read_bytes`, or the content is not UTF-8.
    """
    data = read_bytes(path, limit, expected)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: {_not_utf8(data)}; {expected} was expected") from error


def read_byte_lines(path: Path | str, expected: str = "a text list", max_line: int = MAX_LINE) -> Iterator[bytes]:
    """Yield the lines of a list of any length, with their line ends, one in memory at a time.

    Raises:
        UserError: As `open_input`, or a line is too long.
        Stopped: A stop signal was received.
    """
    number = 0
    with open_input(path, expected=expected) as file, _reading(path, expected):
        while line := file.readline(max_line + 3):  # with a line end of two bytes
            number += 1
            if len(line) > max_line and len(line.rstrip(b"\r\n")) > max_line:
                raise UserError(f"{path}, line {number}: a line of more than {max_line} bytes; {expected} was expected")
            if number % _LINES_PER_CHECK == 0:
                signals.check()
            yield line


def read_lines(path: Path | str, expected: str = "a text list", max_line: int = MAX_LINE) -> Iterator[str]:
    """Yield the lines of a UTF-8 list without line ends (LF or CRLF) and without a byte-order mark.

    Raises:
        UserError: As `read_byte_lines`, or a line is not UTF-8 or holds a NUL byte.
        Stopped: A stop signal was received.
    """
    for number, line in enumerate(read_byte_lines(path, expected, max_line), 1):
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{path}: {_not_utf8(line)}; {expected} was expected")
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\0" in line:
            raise UserError(f"{path}, line {number}: a NUL byte; {expected} was expected")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: {_not_utf8(line)}; {expected} was expected") from error
        yield text


def inside(folder: Path, name: str, where: Path | str) -> Path:
    """Return the path of a file that another file names; it must be below a folder.

    Only the name is checked, which is relative, with `/` or the system's separator. Links are followed: download caches
    consist of links.

    Raises:
        UserError: The name is absolute, leads out of the folder (`..`), or is not a valid file name.
    """
    parts = name.replace("\\", "/").split("/")
    if not all(parts) or ".." in parts or "\0" in name or Path(name).is_absolute():
        raise UserError(f"{where} names the file {name[:200]!r}; a file inside {folder} was expected")
    return folder / name


def files_below(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Yield all files below a folder whose names end with `suffix`; links to folders are not followed.

    Raises:
        UserError: A folder cannot be listed, or they are nested more than `MAX_FOLDER_DEPTH` deep.
    """
    queue = [(os.fspath(folder), 0)]
    while queue:
        path, depth = queue.pop()
        if depth > MAX_FOLDER_DEPTH:
            raise UserError(too_deep(folder, path))
        try:
            with os.scandir(path) as listed:
                items = list(listed)
        except OSError as error:
            raise UserError(f"cannot list {path}: {error.strerror}") from error
        for item in items:
            if item.is_dir(follow_symlinks=False):
                queue.append((item.path, depth + 1))
            elif item.name.endswith(suffix) and item.is_file():
                yield Path(item.path)


def too_deep(root: Path, path: str) -> str:
    """Return the error message for a path below `root` that is nested too deeply."""
    return f"{root}: folders are nested more than {MAX_FOLDER_DEPTH} deep, at {path[:60]!r}..."


def _stat(path: Path | str, expected: str) -> os.stat_result | None:
    """Return the status of a path, following links; None if it does not exist."""
    with _reading(path, expected):
        try:
            return os.stat(path)
        except FileNotFoundError:
            return None


@contextmanager
def _reading(path: Path | str, expected: str) -> Iterator[None]:
    """Turn an error of the system in the block into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: an invalid name
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path}: {reason}; {expected} was expected") from error


def _check(path: Path | str, info: os.stat_result, limit: int | None, expected: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = next((text for test, text in _KINDS if test(info.st_mode)), "not a regular file")
        raise UserError(f"{path} is {kind}; {expected} was expected")
    if limit is not None and info.st_size > limit:
        raise UserError(_too_large(path, info.st_size, limit, expected))


def _too_large(path: Path | str, size: int, limit: int, expected: str) -> str:
    return f"{path} has {size} bytes or more; {expected} of at most {limit} bytes was expected"


def _not_utf8(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "not UTF-8 text, or not a text file at all (it begins as UTF-16 does; save it as UTF-8)"
    return "not UTF-8 text, or not a text file at all"
