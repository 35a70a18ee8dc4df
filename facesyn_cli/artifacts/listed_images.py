"""Find the images that a text list names, and their identities."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from facesyn_cli.artifacts.image_scan import ScanResult, is_image_file
from facesyn_cli.artifacts.image_zip import scan_zip
from facesyn_cli.artifacts.name_lists import NameList
from facesyn_cli.artifacts.names import SUFFIXES, natural_key, nfc
from facesyn_cli.errors import UserError

_TRIED = 1000        # names of a list that are searched for before it is refused
_TRIED_BESIDE = 20   # the same in each folder and zip file beside the list
_MAX_BESIDE = 500    # folders and zip files that are tried


class ListedImages(ScanResult):
    """The images that are both named by a list and present in a folder or zip file.

    Attributes:
        root: Folder or zip file.
        identity_of: Location -> identity by the labels of the list; empty if folders are the identities.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.identity_of = root, {}


def scan_list(listed: NameList) -> ListedImages:
    """Find the images of a list.

    The images are in `images/` beside the list, beside the list itself, or in one other folder or zip file beside it.
    If each label has a folder of its own, the folders are the identities; if all images are in one folder, the labels
    are.

    Raises:
        UserError: No image exists, several places match, or folders and labels contradict each other.
    """
    short = ["/".join(name.split("/")[-2:]) for name in listed.names]
    identities = _identities(listed, short)
    place, names = _root(listed, short)
    found = ListedImages(place.root)
    for row, name in enumerate(names):
        image = place.find(name)
        if image is None:
            found.leave_out(f"images that are not in {place.root}", name)
            continue
        location, size = image
        if location in found.sizes:
            found.leave_out("images that the list names twice", location)
        elif not place.is_image(location):
            raise UserError(f"{listed.path} names {location!r}; images ({', '.join(sorted(SUFFIXES))}) were expected")
        found.sizes[location] = size
        if location in place.members:
            found.members[location] = place.members[location]
        if identities and found.identity_of.setdefault(location, identities[row]) != identities[row]:
            raise UserError(f"{listed.path} gives {location!r} the identities {found.identity_of[location]} and "
                            f"{identities[row]}; one identity per image was expected")
    return found


class _Folder:
    """Finds names of a list below a folder, independent of their Unicode form."""

    def __init__(self, root: Path) -> None:
        self.root, self.members = root, {}
        self._names: dict[str, dict[str, list[str]]] = {}  # folder -> NFC -> names in it

    def find(self, name: str) -> tuple[str, int] | None:
        """Return location and size of an image, or None."""
        size = self._size(name)
        if size is not None or name.isascii():
            return None if size is None else (name, size)
        places = [""]
        for part in nfc(name).split("/"):
            places = [f"{folder}{real}/" for folder in places for real in self._listing(folder).get(part, [])]
        found = [(place[:-1], size) for place in places if (size := self._size(place[:-1])) is not None]
        if len(found) > 1:
            raise UserError(f"{self.root} has several files whose name is {name!r} after Unicode normalization; "
                            "rename all but one")
        return found[0] if found else None

    def is_image(self, location: str) -> bool:
        """Return whether a file is an image."""
        return is_image_file(self.root / location)

    def _size(self, name: str) -> int | None:
        try:
            info = os.stat(self.root / name)
        except (OSError, ValueError):
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def _listing(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            with suppress(OSError):  # its images are counted as missing
                for name in sorted(os.listdir(self.root / folder)):
                    names.setdefault(nfc(name), []).append(name)
            self._names[folder] = names
        return self._names[folder]


class _Zip:
    """Finds names of a list in a zip file, with or without the folder that contains all its images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        found = scan_zip(root)
        self._sizes, self.members = found.sizes, found.members
        self._known = {nfc(location): location for location in found.sizes}
        folders = {location.rpartition("/")[0] for location in found.sizes}
        self._top = nfc(os.path.commonpath(folders)) if folders - {""} == folders and folders else ""

    def find(self, name: str) -> tuple[str, int] | None:
        """Return location and size of an image."""
        name = nfc(name)
        location = self._known.get(name) or self._known.get(f"{self._top}/{name}")
        return None if location is None else (location, self._sizes[location])

    def is_image(self, location: str) -> bool:
        """Return True: `find` returns images only."""
        return True


def _root(listed: NameList, short: list[str]) -> tuple[_Folder | _Zip, list[str]]:
    """Return the folder or zip file with the images of a list, and their names in it."""
    folder = listed.path.parent
    for path, names in ((folder / "images", short), (folder, short), (folder, listed.names)):
        place = _Folder(path)
        if _has_any(place, names, _TRIED):
            return place, names
    fitting = []
    for path in islice(_beside(folder), _MAX_BESIDE):
        place = _Folder(path) if path.is_dir() else _Zip(path)
        names = next((names for names in (short, listed.names) if _has_any(place, names, _TRIED_BESIDE)), None)
        if names is not None:
            fitting.append((place, names))
    if len(fitting) > 1:
        both = " and ".join(str(place.root) for place, _ in fitting[:2])
        raise UserError(f"{listed.path}: its images are in {both}; put the list beside only one of them")
    if not fitting:
        raise UserError(f"{listed.path}: of its first {min(_TRIED, len(short))} images none is in {folder / 'images'}, "
                        f"{folder} or a folder or zip file beside the list, first {short[0]!r}")
    return fitting[0]


def _has_any(place: _Folder | _Zip, names: list[str], count: int) -> bool:
    return any(place.find(name) is not None for name in names[:count])


def _beside(folder: Path) -> Iterator[Path]:
    """Yield the folders beside a list, subfolders of the same name, and the zip files."""
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith(".") or path.name == "images":
            continue
        if path.is_dir():
            yield path
            if (path / path.name).is_dir():
                yield path / path.name
        elif path.suffix.lower() == ".zip" and path.is_file() and zipfile.is_zipfile(path):
            yield path


def _identities(listed: NameList, short: list[str]) -> list[str] | None:
    """Return the identity of each image by the labels of the list; None if folders are the identities.

    Raises:
        UserError: A label belongs to several folders, or a folder to several labels.
    """
    if listed.labels is None:
        return None
    full = [name.rpartition("/")[0] for name in listed.names]
    if len(set(full)) == 1 and (not full[0] or len(set(listed.labels)) > 1):
        return listed.labels
    label_of: dict[str, str] = {}
    folder_of: dict[str, str] = {}
    last = [name.rpartition("/")[0] for name in short]
    for folder, label in zip(last, listed.labels, strict=True):
        if label_of.setdefault(folder, label) != label or folder_of.setdefault(label, folder) != folder:
            raise UserError(
                f"{listed.path}: folder {folder!r} and label {label} are not one to one (also {label_of[folder]}, "
                f"{folder_of.get(label)!r}); one label per folder was expected"
            )
    return last if len(set(full)) > len(set(last)) else None
