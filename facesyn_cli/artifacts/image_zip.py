"""Find the images in a zip file and classify all other members, by the rules of `image_scan`."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from facesyn_cli.artifacts.image_scan import HEAD_BYTES, ScanResult, is_hidden, special_kind
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_IMAGE

READ_ERRORS = (
    OSError, KeyError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)
_UNIX, _UTF8, _ENCRYPTED = 3, 0x800, 0x1  # system that wrote a member, and flags of it
_DRIVE = re.compile(r"[A-Za-z]:(?=/)")


def scan_zip(path: Path) -> ScanResult:
    r"""Find the images in a zip file.

    Member names are interpreted as unpacking tools do: `\` separates folders too, a leading `/`, `./` or drive is
    dropped, and names without the Unicode flag are UTF-8 if valid, else CP437.

    Raises:
        UserError: It is damaged or encrypted, a name leads out of it, two members with different content share a
            name, or an image is too large or compressed by an unsupported method.
    """
    found = ScanResult()
    try:
        with zipfile.ZipFile(path) as archive:
            chosen: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                location = _zip_location(info, path)
                if location is not None:
                    _add_member(location, info, archive, chosen, found, path)
            _check_compression(archive, chosen.values(), path)
    except READ_ERRORS as error:
        raise UserError(f"{path} is not a readable zip file: {error}") from error
    for location, info in chosen.items():
        found.sizes[location] = info.file_size
        if location != info.filename:
            found.members[location] = info.filename
    return found


def _zip_location(info: zipfile.ZipInfo, path: Path) -> str | None:
    """Return the location of a member; None for a folder."""
    name = info.filename
    if not info.flag_bits & _UTF8 and not name.isascii():
        with suppress(UnicodeError):  # it is CP437, as zipfile has read it
            name = name.encode("cp437").decode("utf-8")
    name = name.replace("\\", "/")
    if name.endswith("/"):
        return None
    parts = [part for part in _DRIVE.sub("", name, count=1).split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise UserError(f"{path}: the name {info.filename[:80]!r} leads out of the archive; zip the folder again")
    return "/".join(parts)


def _add_member(
    location: str, info: zipfile.ZipInfo, archive: zipfile.ZipFile, chosen: dict[str, zipfile.ZipInfo],
    found: ScanResult, path: Path,
) -> None:
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    if any(is_hidden(part) for part in location.split("/")):
        found.others["hidden"] += 1
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        found.leave_out(f"{special_kind(mode)} instead of files", location)
    elif info.flag_bits & _ENCRYPTED:
        raise UserError(f"{path} is encrypted ({location!r}); unpack it and name the folder instead")
    elif found.classify(location, partial(_head, archive, info)):
        if info.file_size > MAX_IMAGE:
            raise UserError(f"{location} in {path} unpacks to {info.file_size} bytes; images of at most "
                            f"{MAX_IMAGE} are read")
        known = chosen.setdefault(location, info)
        if (known.CRC, known.file_size) != (info.CRC, info.file_size):
            raise UserError(f"{path} holds two different images named {location!r}; rename one of them")
        if known is not info:
            found.leave_out("images that are in the archive twice", location)


def _check_compression(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo], path: Path) -> None:
    for info in {info.compress_type: info for info in members}.values():
        try:
            archive.open(info).close()
        except NotImplementedError as error:
            raise UserError(f"{path}: {info.filename!r} cannot be unpacked ({error}); zip the folder again with the "
                            "usual compression (deflate)") from error
        except READ_ERRORS:
            continue  # reported when the image is read


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(HEAD_BYTES)
    except READ_ERRORS:
        return b""  # reported when the image is read
