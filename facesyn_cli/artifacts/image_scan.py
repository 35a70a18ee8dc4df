"""Find the images in a folder and classify all other files; `image_zip` does the same for zip files.

A file with the suffix of an image format is taken for an image without opening it. A file with another suffix, or none,
is an image if its first bytes are those of one. Hidden files and folders (name starts with a dot, or is `__MACOSX`) are
not part of a set. A folder that is reached over several symbolic links is scanned once, over the fewest links and then
the first in natural order; links to files are images under their own names.
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

HEAD_BYTES = max(preview_pictures.HEAD_BYTES, image_formats.HEAD_BYTES)  # of a file, enough to classify it

_NO_IMAGES = frozenset((  # suffixes of files that often accompany images; not opened
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".pts", ".npy", ".npz", ".mat",
    ".pkl", ".pt", ".pth", ".log", ".py", ".db", ".ini",
))
_UNSUPPORTED = frozenset((  # suffixes of images, videos and archives that are not read; raw photos start like TIFF
    ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2",
    ".raf", ".pef", ".psd", ".svg", ".tga", ".exr", ".hdr", ".ico", ".eps", ".pdf", ".mp4", ".avi", ".mov", ".mkv",
    ".webm", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar",
))
_PREVIEW = "preview of `facesyn sample`"
_SHOWN = 6
_DENIED = (errno.EACCES, errno.EPERM)
_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, *_DENIED)


class ScanResult:
    """Images of a folder or a zip file, and the files that are not used.

    Attributes:
        sizes: Location of each image, with `/` -> its size in bytes.
        members: Location -> name of the member of a zip file, where the two differ.
        others: Kind of other files -> number of them; they are not images.
        left_out: Reason -> locations of possible images, or folders of images, that are left out.
        second_names: Number of images that are links to another image of the set.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.members: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        self.left_out: dict[str, list[str]] = {}
        self.second_names = 0

    def leave_out(self, reason: str, location: str) -> None:
        """Record something that may hold images but is not used."""
        self.left_out.setdefault(reason, []).append(location)

    def classify(self, location: str, head: Callable[[], bytes]) -> bool:
        """Return whether a file is an image; count it under its kind if it is not."""
        name = location.rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()
        if preview_pictures.is_strip(name, head):
            self.others[_PREVIEW] += 1
            return False
        if suffix in SUFFIXES:
            return True
        if suffix in _UNSUPPORTED:
            self.leave_out(f"{suffix} files are not read", location)
            return False
        if suffix not in _NO_IMAGES and suffix_of_content(head()) is not None:
            return True
        self.others[suffix or "without a suffix"] += 1
        return False

    def report(self, path: Path, is_ours: bool = False) -> None:
        """Log other files, files that are left out, and images with two names, in one line each.

        Args:
            path: The folder or zip file.
            is_ours: It is a finished set of facesyn; its other files are not logged.
        """
        if self.others and not is_ours:
            log.info(f"{path}: {self.describe_others()}")
        if self.left_out:
            log.warning(f"{path}: left out: {self.describe_left_out()}")
        if self.second_names:
            log.warning(f"{path}: links to other images of the set: {self.second_names}; each name counts as an image")

    def counts(self, is_ours: bool = False) -> dict[str, int]:
        """Return the numbers of unused files by kind or reason, as `report` logs them."""
        others = {} if is_ours else dict(self.others.most_common())
        return others | {reason: len(where) for reason, where in sorted(self.left_out.items())}

    def rest(self) -> str:
        """Return the description of all other files, for an error message where there are no images."""
        kinds = [self.describe_others()] if self.others else []
        kinds += [f"left out: {self.describe_left_out()}"] if self.left_out else []
        return "".join(f"; {kind}" for kind in kinds)

    def describe_others(self) -> str:
        """Return the numbers of other files by kind, as text."""
        kinds = self.others.most_common()
        shown = [f"{count} {kind}" for kind, count in kinds[:_SHOWN]]
        rest = sum(count for _, count in kinds[_SHOWN:])
        total = sum(self.others.values())
        verb = "file is not an image" if total == 1 else "files are not images"
        return f"{total} {verb}: {', '.join(shown)}{f', {rest} of other kinds' if rest else ''}"

    def describe_left_out(self) -> str:
        """Return the numbers of files that are left out, by reason, as text."""
        return "; ".join(f"{reason}: {len(where)}, first {min(where, key=natural_key)!r}"
                         for reason, where in sorted(self.left_out.items()))


class FolderScan:
    """Scan of a folder: real folders first, then links to folders, level by level."""

    def __init__(self, root: Path) -> None:
        self._root, self._found = root, ScanResult()
        self._files, self._linked = array("q"), array("q")  # hash of each file, and of the file behind each link
        self._visited: set[tuple[int, int]] = set()
        self._links: list[tuple[str, str]] = []  # location with a final `/`, path

    def run(self) -> ScanResult:
        """Find the images below the folder; the result does not depend on the order of directory listings.

        Raises:
            UserError: The folder cannot be listed, a disk fails, or folders are nested more than `MAX_FOLDER_DEPTH`
                deep.
            Stopped: A stop signal was received.
        """
        level = [("", str(self._root))]
        while level:
            self._links = []
            for prefix, folder in level:
                self._scan_tree(prefix, folder)
            level = sorted(self._links, key=lambda link: natural_key(link[0]))
        self._found.second_names = len(self._linked) - len(set(self._linked).difference(self._files))
        return self._found

    def _scan_tree(self, prefix: str, folder: str) -> None:
        queue = [(prefix, folder)]
        while queue:
            prefix, folder = queue.pop()
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
                    (self._links if item.is_symlink() else queue).append((f"{location}/", item.path))
                elif not stat.S_ISREG(info.st_mode):
                    self._found.leave_out(f"{special_kind(info.st_mode)} instead of files", location)
                elif self._found.classify(location, partial(_head, item.path)):
                    self._found.sizes[location] = info.st_size
                    (self._linked if item.is_symlink() else self._files).append(hash((info.st_dev, info.st_ino)))

    def _list(self, prefix: str, folder: str) -> list[os.DirEntry]:
        """Return the entries of a folder in the order of their names; none if the folder is left out."""
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
        """Return the status of an entry, following links; None if it does not exist or cannot be read."""
        try:
            return item.stat()
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise UserError(f"cannot read {item.path}: {error.strerror}") from error
            reason = "links that lead nowhere" if item.is_symlink() else "files that this user may not read"
            self._found.leave_out(reason, location)
            return None


def is_image_file(path: Path) -> bool:
    """Return whether a file is taken for an image, by its suffix or its first bytes."""
    return path.suffix.lower() in SUFFIXES or suffix_of_content(_head(str(path))) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, and so not part of a set."""
    return name.startswith(".") or name == "__MACOSX"


def special_kind(mode: int) -> str:
    """Return the kind of a special file, in the plural."""
    kinds = ((stat.S_ISFIFO, "named pipes"), (stat.S_ISSOCK, "sockets"), (stat.S_ISLNK, "links in the archive"))
    return next((name for test, name in kinds if test(mode)), "devices")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""  # reported when the image is read
