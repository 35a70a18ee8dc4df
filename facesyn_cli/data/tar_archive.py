"""Reads and writes plain tar archives.

Reading finds the members by their headers; nothing is unpacked and no link is followed. POSIX ustar with the extensions
for long paths and large sizes is read: PAX (`x`) and GNU (`L`). Archives that were joined with `cat` are read to their
end, as `tar --ignore-zeros` does. Sparse files and volumes of a split archive are refused: their content does not lie
in one piece. Writing is deterministic: entries have no time and no owner.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.errors import UserError

BLOCK = 512
TAR_END = bytes(2 * BLOCK)   # closes an archive
_MAX_EXTENSION = 1 << 20     # bytes of a long name or of PAX records
_REGULAR = (b"0", b"\0", b"7")
_LINKS = (b"1", b"2")
_DEVICES = (b"3", b"4", b"6")
_FOLDERS = (b"5", b"D")
_REFUSED = {b"S": "a sparse file; pack it again without --sparse", b"M": "part of a split archive; join its volumes"}
_PLAIN = tarfile.TarInfo().tobuf(tarfile.PAX_FORMAT)     # a file of mode 644


@dataclass(frozen=True, slots=True)
class TarMember:
    """One entry of an archive.

    Args:
        name: Path in the archive; bytes that are no UTF-8 are surrogates.
        offset: First byte of its content.
        size: Bytes of its content.
        kind: `file`, `folder`, `link`, `device` or `other`.
    """

    name: str
    offset: int
    size: int
    kind: str


def is_tar(block: bytes) -> bool:
    """True when the first 512 bytes of a file are the header of a tar member."""
    return len(block) == BLOCK and block[:1] != b"\0" and _checksum_fits(block)


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a regular file without time and owner."""
    if len(name) < 100 and name.isascii() and 0 <= size < 8**11:
        block = bytearray(_PLAIN)
        block[: len(name)], block[124:135] = name.encode(), b"%011o" % size
        block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
        return bytes(block)
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def tar_entry(name: str, data: bytes) -> bytes:
    """Return a regular file as it lies in an archive: header, content and padding to a whole block."""
    return b"".join((tar_header(name, len(data)), data, bytes(-len(data) % BLOCK)))


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write an archive of files (name, content), taken one at a time; it appears whole, by rename.

    Raises:
        UserError: The archive cannot be written.
    """
    with write_atomically(path) as temporary, open(temporary, "wb") as archive:
        archive.writelines(tar_entry(name, data) for name, data in files)
        archive.write(TAR_END)


def read_members(path: Path, file: BinaryIO) -> Iterator[TarMember]:
    """Yield every entry of an open archive, in order; the file may be read and moved between two members.

    Raises:
        UserError: The archive is damaged or truncated, or has a sparse file.
    """
    size, at, long_name, long_size, is_closed = file.seek(0, 2), 0, None, None, False
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            if is_closed:
                return
            raise UserError(f"{path} ends at byte {size} without the closing block of a tar archive; is it truncated?")
        if not block.strip(b"\0"):
            is_closed, at = True, at + BLOCK
            continue
        if not _checksum_fits(block):
            raise UserError(f"{path}: wrong checksum of the header at byte {at}; is it a tar archive, or damaged?")
        is_closed = False
        flag, length = block[156:157], _number(block[124:136])
        if length is None or length > size:
            raise UserError(f"{path}: the header at byte {at} announces more bytes than the file has ({size})")
        if flag in _REFUSED:
            raise UserError(f"{path}: {_short_name(block)} at byte {at} is {_REFUSED[flag]}")
        if flag in _REGULAR and long_size is not None:
            length = long_size
        if flag in (*_LINKS, *_DEVICES, b"5"):
            length = 0  # some writers state the size of what a link points to
        start, end = at + BLOCK, at + BLOCK + length
        if end > size:
            raise UserError(f"{path}: the file at byte {at} is cut off at byte {size}; is the archive truncated?")
        if flag in (b"x", b"L"):
            if length > _MAX_EXTENSION:
                raise UserError(f"{path}: a name of {length} bytes at byte {at}; is it damaged?")
            long_name, long_size = _extension(path, at, flag, file.read(length), long_name, long_size)
        elif flag not in (b"g", b"K"):  # comments, and the target of a link
            name = long_name or _short_name(block)
            yield TarMember(name, start, length, _kind(flag, name))
            long_name = long_size = None
        at = end + -length % BLOCK


def _kind(flag: bytes, name: str) -> str:
    if flag in _REGULAR:
        return "folder" if flag == b"\0" and name.endswith("/") else "file"  # before POSIX folders had no flag
    return next((kind for flags, kind in ((_FOLDERS, "folder"), (_LINKS, "link"), (_DEVICES, "device"))
                 if flag in flags), "other")


def _checksum_fits(block: bytes) -> bool:
    """The sum of all bytes, the checksum itself taken as blanks."""
    stated = _number(block[148:156])
    return stated is not None and stated == sum(block) - sum(block[148:156]) + 8 * 32


def _number(field: bytes) -> int | None:
    """Return a number field: octal text, or big-endian bytes after 0x80; None when it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if all(c in b"01234567" for c in digits) else None


def _short_name(block: bytes) -> str:
    """Return the name in the header itself; only POSIX headers have a second field for its beginning."""
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extension(
    path: Path, at: int, flag: bytes, data: bytes, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Return path and size of the next member from a PAX or GNU header."""
    if flag == b"L":
        return _text(data), size
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if len(length) > 10 or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise UserError(f"{path}: the PAX header at byte {at} is damaged")
        keyword, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 19:
                raise UserError(f"{path}: the PAX header at byte {at} states {value[:40]!r} bytes")
            size = int(value)
        elif keyword.startswith(b"GNU.sparse."):
            raise UserError(f"{path}: the file after byte {at} is {_REFUSED[b'S']}")
        data = data[int(length):]
    return name, size
