"""Finds the shards of a set, and what all of them hold: where the images lie, and whose they are."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.image_formats import HEAD_BYTES, suffix_of_content
from facesyn_cli.artifacts.names import key_part, unescape_name
from facesyn_cli.console import log
from facesyn_cli.data.left_out import LeftOut
from facesyn_cli.data.record_files import NameList, first_bytes, visible_files
from facesyn_cli.data.tar_archive import BLOCK, is_tar
from facesyn_cli.data.tar_samples import LATE_LABELS, TarSample, read_samples
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import open_input

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_COMPRESSIONS = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", re.DOTALL)


class ShardContent:
    """What the headers of all shards say.

    Labels are numbers, or numbers of `names_of` where they are names: of folders, or those that a .json holds.
    """

    def __init__(self) -> None:
        self.file_of, self.offsets, self.sizes, self.labels = array("i"), array("q"), array("q"), array("q")
        self.names, self.names_of, self.left_out = NameList(), {}, LeftOut()
        self.folders, self.folder_of = {}, array("q")  # of images whose label is in a .json or .txt
        self.source: str | None = None                 # of labels: cls, json, txt, or `folder`
        self.has_names = False

    def add(self, path: Path, number: int, sample: TarSample, is_ours: bool) -> None:
        """Add an image.

        Raises:
            UserError: Nothing says whose face it is, or something else than of the images before.
        """
        folder = unescape_name(sample.folder) if is_ours else key_part(sample.folder)
        source = sample.label_field or "folder"
        label = folder if source == "folder" else sample.label
        self._check_source(path, sample, source, isinstance(label, str))
        if source == "folder" and not folder:
            kinds = f" (left out: {', '.join(self.left_out.counts)})" if self.left_out.counts else ""
            raise UserError(f"{path}: {sample.image.name} has neither a .cls nor a folder that says whose face "
                            f"it is{kinds}")
        if source == "folder" and not is_ours and "\\" in sample.image.name:
            raise UserError(f"{path}: {sample.image.name} has a backslash, which may separate folders or not; write "
                            "the archive with / between folders")
        if isinstance(label, str):
            label = self.names_of.setdefault(label, len(self.names_of))
        if source in ("json", "txt"):
            self.folder_of.append(self.folders.setdefault(folder, len(self.folders)))
        self.file_of.append(number)
        self.offsets.append(sample.image.offset)
        self.sizes.append(sample.image.size)
        self.labels.append(label)
        self.names.append(unescape_name(sample.name) if is_ours else key_part(sample.name))

    def _check_source(self, path: Path, sample: TarSample, source: str, is_name: bool) -> None:
        if self.source is None:
            self.source, self.has_names = source, is_name
        if source != self.source:
            first, other = ("no label" if one == "folder" else f"a .{one}" for one in (self.source, source))
            raise UserError(f"{path}: some images have {first} and others {other}; {sample.image.name} is the first "
                            "of the others")
        if is_name != self.has_names:
            raise UserError(f"{path}: some labels are numbers and others names; {sample.image.name} is the first of "
                            "the others")


def is_shard_set(path: Path) -> bool:
    """True for a tar file, and for a folder of tar files without sub-folders; compressed ones are refused later."""
    if path.is_file():
        return is_tar(first_bytes(path, BLOCK)) or _is_compressed(path)
    files = _files(path)
    shards = [file for file in files if file.suffix.lower() == ".tar"]
    if not shards and not any(suffix_of_content(first_bytes(file, HEAD_BYTES)) for file in files):
        shards = [file for file in files if _is_compressed(file)]
    if not shards or not (is_tar(first_bytes(shards[0], BLOCK)) or _is_compressed(shards[0])):
        return False
    # Otherwise a folder of images with an archive lying about.
    return not any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())


def find_shards(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the tar files of a folder, by name; other files beside them are counted.

    Raises:
        UserError: There are none, or there are archives that are no plain ones or have another ending.
    """
    files = _files(folder)
    shards = [file for file in files if file.suffix.lower() == ".tar"]
    for path in files:
        if _is_compressed(path):
            raise UserError(f"{path} is no plain tar archive; unpack or re-create it without compression")
        if path in shards:
            continue
        if is_tar(first_bytes(path, BLOCK)):
            raise UserError(f"{path} is a tar archive whose name does not end in .tar; rename it, or move it elsewhere")
        if suffix_of_content(first_bytes(path, HEAD_BYTES)):
            left_out.add("images beside the shards", path.name)
        else:
            left_out.add("other files beside the shards", path.name)
    if not shards:
        raise UserError(f"{folder} holds no .tar files")
    return shards


def _files(folder: Path) -> list[Path]:
    return visible_files(folder, "") if folder.is_dir() else []


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith((".tar", *_COMPRESSED)) and bool(_COMPRESSIONS.match(first_bytes(path, 8)))


def check_labels(path: Path, found: ShardContent, labels: np.ndarray, num_identities: int) -> None:
    """Refuse labels that belong to no image, or are perhaps no identities; warn of a single identity.

    A `.json` or `.txt` may hold the label of something else than the identity, of an age group for example. Where
    the folders divide the images more finely, they may be the identities.
    """
    late = found.left_out.counts[LATE_LABELS]
    if late and found.source == "folder":
        raise UserError(f"{path}: {late} labels have no image beside them, and no image has a label; the files of a "
                        "sample must follow each other, as `tar --sort=name` packs them")
    if found.source in ("json", "txt") and len(found.folders) > 1:
        pairs = np.unique(labels.astype(np.int64) * len(found.folders) + np.frombuffer(found.folder_of, np.int64))
        if len(pairs) > num_identities:
            raise UserError(
                f"{path}: the labels in .{found.source} files divide the images into {num_identities}, their folders "
                f"into {len(found.folders)}, and neither follows from the other; which are the identities? Put the "
                "labels into .cls files, or leave them out for the folders"
            )
    if num_identities == 1 and len(labels) > 1:
        log.warning(f"{path}: all {len(labels)} images are of one identity")


def scan_shards(shards: list[Path], found: ShardContent, is_ours: bool) -> None:
    """Find the images and labels of all shards."""
    for number, path in enumerate(shards):
        try:
            with open_input(path, expected="a tar archive") as file:
                if not is_tar(file.read(BLOCK)):
                    raise UserError(f"{path} is no plain tar archive; unpack or re-create it without compression")
                for sample in read_samples(path, file, found.left_out):
                    found.add(path, number, sample, is_ours)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not len(found.names):
        found.left_out.say(shards[0], 0)
        raise UserError(f"{shards[0]} holds no images with a key such as `000/12.jpg`")
