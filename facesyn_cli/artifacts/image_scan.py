"""What a folder holds: the images, and by kind everything else; `image_zip` does the same for zip files.

A file with the ending of an image is one without being opened; whoever decodes it says what is wrong with it. A file
with another ending, or none, is an image where it begins like one. Hidden files and folders (their name starts with a
dot, or is `__MACOSX`) are no part of a set. Of several ways to one folder the one over the fewest symbolic links is
taken, and among those the first in natural order; links to files are images under their own names.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from facesyn_cli import signals
from facesyn_cli.artifacts import image_formats, preview_pictures
from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.artifacts.names import SUFFIXES, natural_key
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MAX_FOLDER_DEPTH, too_deep

HEAD_BYTES = max(preview_pictures.HEAD_BYTES, image_formats.HEAD_BYTES)  # of a file, to tell what it is

_BESIDE = frozenset((  # endings of what often lies beside images; not opened
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".pts", ".npy", ".npz", ".mat",
    ".pkl", ".pt", ".pth", ".log", ".py", ".db", ".ini",
))
_NOT_READ = frozenset((  # endings of images, films and archives that are not read; raw photos begin as TIFF does
    ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2",
    ".raf", ".pef", ".psd", ".svg", ".tga", ".exr", ".hdr", ".ico", ".eps", ".pdf", ".mp4", ".avi", ".mov", ".mkv",
    ".webm", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar",
))
_PREVIEW = "preview of `facesyn sample`"
_SHOWN = 6
_DENIED = (errno.EACCES, errno.EPERM)
_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, *_DENIED)


class Found:
    """Images of a folder or a zip file, and what else is there.

    Attributes:
        sizes: Location of each image, with `/` -> its bytes.
        members: Location -> name of the member of a zip file, where the two differ.
        others: Kind of other files -> how many; they are no images.
        left_out: Reason -> locations of what may be, or may hold, images and is left out.
        second_names: How many of the images are links to others of them.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.members: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        self.left_out: dict[str, list[str]] = {}
        self.second_names = 0

    def leave_out(self, reason: str, location: str) -> None:
        """Note something that may hold images."""
        self.left_out.setdefault(reason, []).append(location)

    def classify(self, location: str, head: Callable[[], bytes]) -> bool:
        """Return whether a file is an image; if it is none, note what it is."""
        name = location.rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()
        if preview_pictures.is_strip(name, head):
            self.others[_PREVIEW] += 1
            return False
        if suffix in SUFFIXES:
            return True
        if suffix in _NOT_READ:
            self.leave_out(f"{suffix} files are not read", location)
            return False
        if suffix not in _BESIDE and suffix_of_content(head()) is not None:
            return True
        self.others[suffix or "without an ending"] += 1
        return False

    def report(self, path: Path, is_ours: bool = False) -> None:
        """Say what is not used, in one line for what is no image and in one for what may be, and what has two names.

        Args:
            path: The folder or zip file.
            is_ours: It is a finished set of facesyn, whose other files are known.
        """
        if self.others and not is_ours:
            log.info(f"{path}: {self.describe_others()}")
        if self.left_out:
            log.warning(f"{path}: left out: {self.describe_left_out()}")
        if self.second_names:
            log.warning(f"{path}: links to images that have another name in the set too: {self.second_names}; each "
                        "name counts as an image")

    def counts(self, is_ours: bool = False) -> dict[str, int]:
        """Return how often what is not used, as `report` says it."""
        others = {} if is_ours else dict(self.others.most_common())
        return others | {reason: len(where) for reason, where in sorted(self.left_out.items())}

    def rest(self) -> str:
        """Return what is there although there are no images, for an error message."""
        kinds = [self.describe_others()] if self.others else []
        kinds += [f"left out: {self.describe_left_out()}"] if self.left_out else []
        return "".join(f"; {kind}" for kind in kinds)

    def describe_others(self) -> str:
        """Return how many files of which kinds are no images."""
        kinds = self.others.most_common()
        shown = [f"{count} {kind}" for kind, count in kinds[:_SHOWN]]
        rest = sum(count for _, count in kinds[_SHOWN:])
        total = sum(self.others.values())
        verb = "file is no image" if total == 1 else "files are no images"
        return f"{total} {verb}: {', '.join(shown)}{f', {rest} of other kinds' if rest else ''}"

    def describe_left_out(self) -> str:
        """Return how many things are left out for which reasons."""
        return "; ".join(
            f"{reason}: {len(where)}, first {min(where, key=natural_key)!r}"
            for reason, where in sorted(self.left_out.items())
        )


def scan_folder(path: Path) -> Found:
    """Find the images below a folder. The result does not depend on the order in which folders list their contents.

    Raises:
        UserError: The folder cannot be listed, a disk fails, or folders are nested more than `MAX_FOLDER_DEPTH` deep.
        Stopped: A stop signal was received.
    """
    return _FolderScan(path).run()


class _FolderScan:
    """One scan of a folder: real folders first, then links to folders, level by level."""

    def __init__(self, root: Path) -> None:
        self._root, self._found, self._files = root, Found(), _Files()
        self._visited: set[tuple[int, int]] = set()
        self._links: list[tuple[str, str]] = []  # location with a final `/`, path

    def run(self) -> Found:
        """Return what is there."""
        level = [("", str(self._root))]
        while level:
            self._links = []
            for prefix, folder in level:
                self._scan_tree(prefix, folder)
            level = sorted(self._links, key=lambda link: natural_key(link[0]))
        self._found.second_names = self._files.links_to_known()
        return self._found

    def _scan_tree(self, prefix: str, folder: str) -> None:
        waiting = [(prefix, folder)]
        while waiting:
            prefix, folder = waiting.pop()
            if prefix.count("/") > MAX_FOLDER_DEPTH:
                raise UserError(too_deep(self._root, prefix))
            for item in self._list(prefix, folder):
                location = f"{prefix}{item.name}"
                if is_hidden(item.name):
                    self._found.others["hidden"] += 1
                    continue
                info = self._stat(item, location)
                if info is None:
                    continue
                if stat.S_ISDIR(info.st_mode):
                    (self._links if item.is_symlink() else waiting).append((f"{location}/", item.path))
                elif not stat.S_ISREG(info.st_mode):
                    self._found.leave_out(f"{special_kind(info.st_mode)} instead of files", location)
                elif self._found.classify(location, partial(_head, item.path)):
                    self._found.sizes[location] = info.st_size
                    self._files.add(info, item.is_symlink())

    def _list(self, prefix: str, folder: str) -> list[os.DirEntry]:
        """Return what a folder holds, in the order of the names; nothing where it is left out."""
        signals.check()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in self._visited:
                self._found.leave_out("folders that are in the set under another name", prefix.rstrip("/"))
                return []
            self._visited.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as listed:
                return sorted(listed, key=lambda item: item.name)
        except OSError as error:
            if not prefix or error.errno not in _DENIED:
                raise UserError(f"cannot list {folder}: {error.strerror}") from error
            self._found.leave_out("folders that this user may not list", prefix.rstrip("/"))
            return []

    def _stat(self, item: os.DirEntry, location: str) -> os.stat_result | None:
        """Return what a name leads to; None where it leads nowhere."""
        try:
            return item.stat()
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise UserError(f"cannot read {item.path}: {error.strerror}") from error
            reason = "links that lead nowhere" if item.is_symlink() else "files that this user may not read"
            self._found.leave_out(reason, location)
            return None


class _Files:
    """Which files the names of images lead to, eight bytes each."""

    def __init__(self) -> None:
        self._real, self._linked = array("q"), array("q")

    def add(self, info: os.stat_result, is_link: bool) -> None:
        (self._linked if is_link else self._real).append(hash((info.st_dev, info.st_ino)))

    def links_to_known(self) -> int:
        """Return how many links lead to a file that has a name already."""
        if not self._linked:
            return 0
        targets = set(self._linked)
        return len(self._linked) - len(targets) + len(targets.intersection(self._real))


def is_image_file(path: Path) -> bool:
    """Return whether a file is taken for an image: it has the ending of one, or begins like one."""
    return path.suffix.lower() in SUFFIXES or suffix_of_content(_head(str(path))) is not None


def check_depth(locations: list[str], path: Path) -> None:
    """Refuse images that lie too deep.

    Raises:
        UserError: More than `MAX_FOLDER_DEPTH` folders.
    """
    deep = next((location for location in locations if location.count("/") > MAX_FOLDER_DEPTH), None)
    if deep is not None:
        raise UserError(too_deep(path, deep))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is no part of a set."""
    return name.startswith(".") or name == "__MACOSX"


def special_kind(mode: int) -> str:
    """Return what something is that is neither a file nor a folder, in the plural."""
    kinds = ((stat.S_ISFIFO, "named pipes"), (stat.S_ISSOCK, "sockets"), (stat.S_ISLNK, "links in the archive"))
    return next((name for test, name in kinds if test(mode)), "devices")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""  # whoever reads the image says so
