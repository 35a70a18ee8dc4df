"""ImageSet: encoded images by key, in a folder, a zip or a list of files, ours or anybody's.

Layout: `<identity>/<sample>.<suffix>`; the key is `identity/sample`. The rules for folders that facesyn
did not write:

    a/b/c.jpg    identity `a/b`, sample `c`: the identity is the folder, however deep
    x.jpg        in the top folder: an identity of its own, key `x/0`
    one folder that holds everything in sub-folders is left out of the identities
    a.jpg, a.png in one folder: the two keep their suffixes in the key
    a line break, a tab or a byte that is no text in a name is %xxxx in the key, so that keys are lines of a file
    strip.png, contact_sheet.png  the pictures that `sample` keeps (`artifacts/strip.py`) are no images of the set
    a text list (`CASIA_namelist.txt`)  of each path the last folder is the identity, the name the sample; the
                 images lie in `images/` beside the list, or beside the list itself

Order is the natural order of keys (`2` before `10`), so it does not depend on the file system.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.files import TEMPORARY_PREFIX
from facesyn_cli.artifacts.name_lists import SUFFIXES, NameList, one_line, read_name_list
from facesyn_cli.artifacts.output import Parent, read_header, require_header
from facesyn_cli.artifacts.strip import HEAD_BYTES, is_strip
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

MAX_FILE_BYTES = 256 * 2**20
_TRIED = 1000  # names of a list that are looked for before it is refused
_READ_ERRORS = (
    OSError, KeyError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a set.

    Args:
        key: `identity/sample`, unique in the set.
        identity: Whose face it is.
        sample: Which image of that identity.
        location: Path inside the set, with `/`.
    """

    key: str
    identity: str
    sample: str
    location: str


class ImageSet:
    """Encoded images by key; open with `ImageSet.open`. Safe to share between threads, and picklable.

    Attributes:
        path: Folder or zip file.
        entries: All images in natural order of their keys.
        digest: Digest of the set: of a set made by facesyn the one in its header, otherwise that of
            all locations and file sizes.
        named_in: The list that named the images, or None.
    """

    def __init__(self, path: Path, entries: list[ImageEntry], digest: str, named_in: Path | None = None) -> None:
        self.path = path
        self.entries = entries
        self.digest = digest
        self.named_in = named_in
        self._archives = threading.local()

    @staticmethod
    def open(path: Path) -> ImageSet:
        """Open a folder or a zip file of images, or a text list of them.

        Raises:
            UserError: It does not exist, is none of them, is unfinished work of facesyn, or holds no images.
        """
        path, named_in = Path(path), None
        if not path.exists():
            raise UserError(f"{path} does not exist; a folder or zip of images was expected")
        if path.is_dir():
            header = require_header(path, "ImageSet") if _is_ours(path) else None
            sizes = _scan_folder(path)
        elif zipfile.is_zipfile(path):
            header, sizes = None, _scan_zip(path)
        elif path.suffix == ".txt":
            header, named_in = None, path
            path, sizes = _scan_list(read_name_list(path))
        else:
            raise UserError(f"{path} is neither a folder nor a zip file of images, nor a text list of them (.txt)")
        entries = _entries(list(sizes), is_ours=header is not None)
        if not entries:
            raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))} were looked for)")
        digest = header.digest if header else json_digest([[e.location, sizes[e.location]] for e in entries])
        return ImageSet(path, entries, digest, named_in)

    def read(self, entry: ImageEntry) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            UserError: The file is gone, unreadable or larger than 256 MiB.
        """
        try:
            if self.path.is_dir():
                return (self.path / entry.location).read_bytes()
            return self._archive().read(entry.location)
        except _READ_ERRORS as error:
            raise UserError(f"cannot read {entry.location} in {self.path}: {error}") from error

    def by_identity(self) -> dict[str, list[ImageEntry]]:
        """Return the entries grouped by identity, in order."""
        groups: dict[str, list[ImageEntry]] = {}
        for entry in self.entries:
            groups.setdefault(entry.identity, []).append(entry)
        return groups

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return Parent(str(self.named_in or self.path), self.digest)

    def __getstate__(self) -> dict:
        return {"path": self.path, "entries": self.entries, "digest": self.digest, "named_in": self.named_in}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def _archive(self) -> zipfile.ZipFile:
        """One handle per thread and process: zip handles share a file position."""
        held = getattr(self._archives, "held", None)
        if held is None or held[0] != os.getpid():
            held = self._archives.held = (os.getpid(), zipfile.ZipFile(self.path))
        return held[1]


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which `2` comes before `10`; total: different texts never tie."""
    parts = [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p) for p in re.split(r"([0-9]+)", text) if p]
    return parts


def _is_ours(path: Path) -> bool:
    return read_header(path) is not None or (path / "facesyn.begun.json").is_file()


def _scan_folder(path: Path) -> dict[str, int]:
    """Return location -> size of every image file below a folder; links are followed once, loops are not."""
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()

    def scan(folder: Path, prefix: str) -> None:
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                return
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as found:
                items = list(found)
        except OSError as error:
            raise UserError(f"cannot list {folder}: {error.strerror}") from error
        for item in items:
            if item.name.startswith("."):
                continue
            try:
                info = item.stat()
            except OSError:
                continue  # a dangling link
            if stat.S_ISDIR(info.st_mode):
                scan(Path(item.path), f"{prefix}{item.name}/")
            elif stat.S_ISREG(info.st_mode) and _is_image(item.name):
                if is_strip(item.name, partial(_head, item.path)):
                    continue
                sizes[f"{prefix}{item.name}"] = info.st_size

    scan(path, "")
    return sizes


def _scan_zip(path: Path) -> dict[str, int]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = {
                info.filename: info.file_size for info in archive.infolist()
                if not info.is_dir() and _is_image(name := PurePosixPath(info.filename).name)
                and not is_strip(name, partial(_head, info.filename, archive))
            }
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable zip file: {error}") from error
    for name, size in found.items():
        if size > MAX_FILE_BYTES:
            raise UserError(f"{name} in {path} unpacks to {size} bytes; images of at most {MAX_FILE_BYTES} are read")
    return {name: size for name, size in found.items() if "__MACOSX" not in name.split("/")}


def _head(name: str, archive: zipfile.ZipFile | None = None) -> bytes:
    try:
        with archive.open(name) if archive else open(name, "rb") as file:
            return file.read(HEAD_BYTES)
    except _READ_ERRORS:
        return b""  # whoever reads the image says so


def _scan_list(listed: NameList) -> tuple[Path, dict[str, int]]:
    """Return the folder that a list's images lie in and location -> size of those that are there."""
    folder = listed.path.parent
    short = ["/".join(name.split("/")[-2:]) for name in listed.names]
    _check_labels(listed, short)
    roots = ((folder / "images", short), (folder, short), (folder, listed.names))
    root, names = next(
        ((root, names) for root, names in roots if any((root / name).is_file() for name in names[:_TRIED])), (None, [])
    )
    if root is None:
        raise UserError(f"{listed.path}: of its first {min(_TRIED, len(short))} images none is in {folder / 'images'} "
                        f"or {folder}, first {short[0]!r}")
    sizes = {}
    for name in names:
        try:
            sizes[name] = (root / name).stat().st_size
        except OSError:
            continue  # counted below
    missing = [name for name in names if name not in sizes]
    if missing:
        log.warning(f"{listed.path}: {len(missing)} of {len(names)} images are not in {root}, first {missing[0]!r}; "
                    "they are left out")
    odd = next((name for name in sizes if not _is_image(name.rpartition("/")[2])), None)
    if odd is not None:
        raise UserError(f"{listed.path} names {odd!r}; images ({', '.join(sorted(SUFFIXES))}) were expected")
    return root, sizes


def _check_labels(listed: NameList, names: list[str]) -> None:
    """Labels number the folders; a list in which they do not is about other identities than its folders."""
    label_of: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for name, label in zip(names, listed.labels or [], strict=False):
        folder = name.rpartition("/")[0]
        if label_of.setdefault(folder, label) != label or folder_of.setdefault(label, folder) != folder:
            raise UserError(
                f"{listed.path}: folder {folder!r} and label {label} do not belong to each other alone (also "
                f"{label_of[folder]}, {folder_of.get(label)!r}); one label a folder was expected"
            )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith((".", TEMPORARY_PREFIX))


def _entries(locations: list[str], is_ours: bool) -> list[ImageEntry]:
    skip = 0 if is_ours else _shared_top(locations)
    rows = []
    for location in locations:
        *folders, name = location.split("/")[skip:]
        stem, suffix = os.path.splitext(name)
        rows.append((one_line("/".join(folders)) or None, one_line(stem), suffix, location))
    taken = Counter((folder, stem) for folder, stem, _, _ in rows)
    entries = []
    for folder, stem, suffix, location in rows:
        name = stem if taken[folder, stem] == 1 else f"{stem}{suffix}"
        identity, sample = (folder, name) if folder is not None else (name, "0")
        entries.append(ImageEntry(f"{identity}/{sample}", identity, sample, location))
    clashes = [key for key, count in Counter(e.key for e in entries).items() if count > 1]
    if clashes:
        raise UserError(f"two images have the key {clashes[0]!r}; rename one of them")
    return sorted(entries, key=lambda e: natural_key(e.key))


def _shared_top(locations: list[str]) -> int:
    """1 when a single top folder holds everything in sub-folders, else 0."""
    tops = {location.split("/")[0] for location in locations}
    return int(len(tops) == 1 and all(location.count("/") >= 2 for location in locations))
