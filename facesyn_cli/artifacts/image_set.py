"""ImageSet: encoded images by key, in a folder, a zip file or a list of files.

Layout: `<identity>/<sample>.<suffix>`; the key is `identity/sample`. Rules for sets that facesyn did not write:

    a/b/c.jpg      identity `a/b`, sample `c`: the identity is the folder, at most 100 levels deep
    x.jpg          in the top folder: an identity of its own, key `x/0`
    a single top folder that contains everything in subfolders is not part of the identities
    a.jpg, a.png   in one folder: the keys include the suffixes
    line breaks, tabs and undecodable bytes in a name are %xxxx in the key, so that a key is one line of text
    strip.png, contact_sheet.png  of earlier releases of `sample`: not part of the set
    `é`            is one character in keys (Unicode NFC); two folders with the same NFC name are one identity
    a text list    the images that it names, in `images/` beside it, beside it, or in a folder or zip file there
                   `CASIA_namelist.txt`: the last folder of each path is the identity, the name is the sample
                   `identity_CelebA.txt`: images in one folder; the identity follows each name

`image_scan` defines which files are images and how links are treated; files that are left out are logged. Keys are in
natural order (`2` before `10`), independent of the file system.
"""

from __future__ import annotations

import os
import weakref
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header import Parent, is_ours, require_header
from facesyn_cli.artifacts.image_scan import FolderScan
from facesyn_cli.artifacts.image_zip import READ_ERRORS, scan_zip
from facesyn_cli.artifacts.listed_images import scan_list
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.name_lists import read_name_list
from facesyn_cli.artifacts.names import (
    SUFFIXES,
    key_part,
    natural_key,
    nfc,
    sort_naturally,
    split_suffix,
    without_suffix,
)
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_FOLDER_DEPTH, MAX_IMAGE, check_input, read_bytes, too_deep

__all__ = ["MAX_FILE_BYTES", "SUFFIXES", "ImageEntry", "ImageSet", "natural_key"]

MAX_FILE_BYTES = MAX_IMAGE


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a set.

    Args:
        key: `identity/sample`, unique in the set.
        identity: Name of the person.
        sample: Name of the image among those of the identity.
        location: Path inside the set, with `/`.
    """

    key: str
    identity: str
    sample: str
    location: str


@dataclass(eq=False)
class ImageSet:
    """Encoded images by key; open with `ImageSet.open`. Thread-safe and picklable.

    Args:
        path: Folder or zip file.
        entries: All images in natural order of their keys.
        digest: Digest of the set: from the header of a set made by facesyn, otherwise of all locations and file
            sizes.
        named_in: Text list that names the images, or None.
        members: Location -> name of the member of the zip file, where the two differ.
        left_out: Reason or kind -> number of files of the folder, zip file or list that are not used.
        has_listed_identities: Identities come from the labels of a list, not only from folders.
    """

    path: Path
    entries: list[ImageEntry]
    digest: str
    named_in: Path | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    has_listed_identities: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    _opened: tuple[int, zipfile.ZipFile] | None = field(default=None, init=False, repr=False)

    @staticmethod
    def open(path: Path) -> ImageSet:
        """Open a folder or a zip file of images, or a text list of them.

        Raises:
            UserError: It does not exist, is none of them, is an unfinished folder of facesyn, or holds no images.
        """
        path = Path(path)
        check_input(path, "a folder or zip of images")
        if not path.exists():
            raise missing_input(path, "a folder or zip of images")
        given, is_listed, identity_of = path, False, {}
        header = require_header(path, "ImageSet") if is_ours(path) else None
        if path.is_dir():
            found = FolderScan(path).run()
        elif zipfile.is_zipfile(path):
            found = scan_zip(path)
        elif path.suffix == ".txt":
            listed = read_name_list(path)
            found, is_listed = scan_list(listed), listed.labels is not None
            path, identity_of = found.root, found.identity_of
        else:
            raise UserError(f"{path} is neither a folder nor a zip file of images, nor a text list of them (.txt)")
        sizes = found.sizes
        if not sizes:
            raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))} were looked for){found.rest()}")
        if deep := next((location for location in sizes if location.count("/") > MAX_FOLDER_DEPTH), None):
            raise UserError(too_deep(path, deep))
        found.report(given, header is not None)
        entries = _entries(list(sizes), header is not None, identity_of)
        _report_spellings(path, list(sizes))
        digest = header.digest if header else _digest(entries, sizes, identity_of)
        log.debug(f"read {path}: {len(entries)} images, {digest}")
        named_in = None if given == path else given
        return ImageSet(path, entries, digest, named_in, found.members, is_listed, found.counts(header is not None))

    def read(self, entry: ImageEntry) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            UserError: The file is missing, unreadable or larger than 256 MiB.
        """
        try:
            if self.path.is_dir():
                return read_bytes(self.path / entry.location, MAX_IMAGE, "an image")
            return self._archive().read(self.members.get(entry.location, entry.location))
        except READ_ERRORS as error:
            raise UserError(f"cannot read {entry.location} in {self.path}: {error}") from error

    def files(self) -> list[Path]:
        """Return the files that hold the images: of a folder one for each entry, in order, of a zip file itself."""
        return [self.path / entry.location for entry in self.entries] if self.path.is_dir() else [self.path]

    def by_identity(self) -> dict[str, list[ImageEntry]]:
        """Return the entries grouped by identity, in order."""
        groups: dict[str, list[ImageEntry]] = {}
        for entry in self.entries:
            groups.setdefault(entry.identity, []).append(entry)
        return groups

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return Parent(str(self.named_in or self.path), self.digest)

    def extra(self) -> dict[str, Any]:
        """Return the entries about this input for the header of an output: the numbers of unused files, if any."""
        return {"left_out": dict(self.left_out)} if self.left_out else {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        """Return the open zip file: one per process, because forks share file positions, and for all its threads.

        Threads can read from one handle as long as it does not own the file object.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            file = open(self.path, "rb")
            archive = zipfile.ZipFile(file)
            weakref.finalize(archive, file.close)
            self._opened = (os.getpid(), archive)
        return self._opened[1]


class ImageFinder:
    """Finds images of a set by the names that other people's lists give them.

    `x/a/b.jpg` is found by its path in the set or on disk, by any end of it (`a/b.jpg`, `b.jpg`), and by its key, each
    with or without suffix, because lists often name files that were converted since. Names are compared in NFC.

    Args:
        images: The set.
    """

    def __init__(self, images: ImageSet) -> None:
        self._root = images.path
        self._exact = {nfc(entry.location): entry for entry in images.entries}
        self._by_name: dict[str, ImageEntry | None] = {}  # None: several images have this name
        for entry in images.entries:
            parts = nfc(without_suffix(entry.location)).split("/")
            names = {"/".join(parts[i:]) for i in range(len(parts))} | {entry.key}
            for name in names:
                other = self._by_name.get(name, entry)
                self._by_name[name] = entry if other is entry else None
        for entry in images.entries:
            self._by_name[entry.key] = entry

    def find(self, *names: str, named_in: Path) -> ImageEntry | None:
        """Return the image of the first name that matches, or None.

        Args:
            names: Possible names of one image, best first.
            named_in: The list with the names, for messages.

        Raises:
            UserError: The name matches several images.
        """
        for name in names:
            location = self._relative(name)
            if location in self._exact:
                return self._exact[location]
            stem = without_suffix(location)
            if stem in self._by_name:
                entry = self._by_name[stem]
                if entry is None:
                    raise UserError(f"{named_in}: {location!r} matches several images in {self._root}; give more of it")
                return entry
        return None

    def _relative(self, name: str) -> str:
        if os.path.isabs(name):
            try:
                name = os.path.relpath(nfc(name), nfc(str(self._root)))
            except ValueError:
                return name
        return PurePosixPath(nfc(name).replace("\\", "/")).as_posix()


def _digest(entries: list[ImageEntry], sizes: Mapping[str, int], identity_of: Mapping[str, str]) -> str:
    """Return the digest of locations and sizes, and of identities from a list."""
    rows = [[nfc(entry.location), sizes[entry.location]] for entry in entries]
    return json_digest([[*row, entry.identity] for row, entry in zip(rows, entries, strict=True)]
                       if identity_of else rows)


def _entries(locations: list[str], is_ours: bool, identity_of: Mapping[str, str]) -> list[ImageEntry]:
    entries = _named(locations, 0 if is_ours else _shared_top(locations), identity_of)
    sort_naturally(entries, lambda entry: entry.key)
    clash = next((one.key for one, other in pairwise(entries) if one.key == other.key), None)
    if clash is not None:
        where = " and ".join(ascii(e.location) for e in entries if e.key == clash)
        raise UserError(f"several images have the key {clash!r}: {where}; rename all but one of them")
    return entries


def _named(locations: list[str], skip: int, identity_of: Mapping[str, str]) -> list[ImageEntry]:
    """Return the images in the order of their locations; keys omit the first `skip` folders."""
    rows = []
    for location in locations:
        *folders, name = location.split("/")[skip:]
        stem, suffix = split_suffix(name)
        identity = intern(key_part(identity_of.get(location) or "/".join(folders))) or None
        rows.append((identity, key_part(stem), suffix, location))
    taken = Counter((identity, stem) for identity, stem, _, _ in rows)
    entries = []
    for identity, stem, suffix, location in rows:
        sample = stem if taken[identity, stem] == 1 else f"{stem}{suffix}"
        identity, sample = (identity, sample) if identity is not None else (sample, "0")
        entries.append(ImageEntry(f"{identity}/{sample}", identity, sample, location))
    return entries


def _shared_top(locations: list[str]) -> int:
    """Return 1 if a single top folder contains everything in subfolders, else 0."""
    tops = {nfc(location.split("/")[0]) for location in locations}
    return int(len(tops) == 1 and all(location.count("/") >= 2 for location in locations))


def _report_spellings(path: Path, locations: list[str]) -> None:
    """Warn of folders with one name in two Unicode forms; they are one identity of the set."""
    folders = {location.rpartition("/")[0] for location in locations if not location.isascii()}
    forms = Counter(nfc(folder) for folder in folders)
    double = [folder for folder, count in forms.items() if count > 1]
    if double:
        log.warning(f"{path}: folders with one name in two Unicode forms: {len(double)}, first {double[0]!r}; both are "
                    "taken as one identity")
