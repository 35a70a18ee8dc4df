"""Record format `webdataset`: tar shards of `<key>.<image suffix>` and `<key>.cls`, in plain tar.

Layout of a set called N in an output folder R:

    R/N/N-000000.tar ...    10,000 images a shard; members `identity/sample.jpg`, `identity/sample.cls`
    R/labels.txt            which label is which identity; written by `facesyn pack`

`facesyn sample` writes the same without `.cls` and labels.txt: labels are assigned by `pack` alone.

The content of a `.cls` is the integer label as text, as webdataset decodes it; here with blanks after it, so
that every one takes 10 bytes and can be filled in when the labels are known. `webdataset.WebDataset(
"R/N/N-{000000..000012}.tar").decode("pil").to_tuple("jpg;png;webp;bmp", "cls")` reads the set.

How images and labels are grouped, and which labels are read besides `.cls`, is in `tar_samples.py`. Without labels
the identity is the folder of the key. Compressed archives (.tar.gz) are refused, also beside plain ones: their images
cannot be found without unpacking everything before them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.image_formats import HEAD_BYTES, suffix_of_content
from facesyn_cli.artifacts.names import escape_folder, escape_stem, key_part, unescape_name
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.console import log
from facesyn_cli.data.append_files import RecordAppender, fill_in
from facesyn_cli.data.record_files import (
    FileRecords,
    LeftOut,
    NameList,
    RecordFiles,
    content_digest,
    first_bytes,
    visible_files,
)
from facesyn_cli.data.record_images import PassthroughConfig, PassthroughFormat, suffix_of
from facesyn_cli.data.record_labels import dense_labels, named_labels, our_labels
from facesyn_cli.data.tar_archive import BLOCK, TAR_END, is_tar, tar_entry
from facesyn_cli.data.tar_samples import LATE_LABELS, TarSample, read_samples
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.untrusted.input_files import open_input

_LABEL_BYTES = 10
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_COMPRESSIONS = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", re.DOTALL)


class WebdatasetConfig(PassthroughConfig):
    """Settings of `webdataset`."""

    records_per_shard: int = Field(
        10_000, gt=0, description="images in a shard; 10,000 are about 80 MB of 112-pixel JPEGs"
    )


@register("record_format", "webdataset", Card("Tar shards of images and .cls labels, as the webdataset package reads."))
class WebdatasetFormat(PassthroughFormat):
    """Reads and writes tar shards; see the module docstring."""

    def __init__(self, cfg: WebdatasetConfig) -> None:
        self.cfg = cfg

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> WebdatasetWriter:
        """Open a set for writing at the state of its last commit."""
        return WebdatasetWriter(folder / name, name, scratch, self.cfg.records_per_shard, state)

    def recognizes(self, path: Path) -> bool:
        """True for a tar file, and for a folder of tar files without sub-folders; compressed ones are refused later."""
        if path.is_file():
            return is_tar(first_bytes(path, BLOCK)) or _is_compressed(path)
        files = visible_files(path, "")
        shards = [file for file in files if file.suffix.lower() == ".tar"]
        if not shards and not any(suffix_of_content(first_bytes(file, HEAD_BYTES)) for file in files):
            shards = [file for file in files if _is_compressed(file)]
        if not shards or not (is_tar(first_bytes(shards[0], BLOCK)) or _is_compressed(shards[0])):
            return False
        # Otherwise it is a folder of images that also holds an archive.
        return not any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a folder of tar shards, or one shard.

        Raises:
            UserError: A shard is damaged, truncated, compressed, or holds labels of another kind.
        """
        folder = path / str(header.extra.get("name")) if header else path
        found = _ShardContent()
        shards = [path] if path.is_file() else _find_shards(folder, found.left_out)
        _scan_shards(shards, found, header is not None)
        values = np.frombuffer(found.labels, np.int64)
        if header is not None and found.source == "cls":
            labels, identities = our_labels(values, path)
        elif found.names_of:
            labels, identities = named_labels(values, list(found.names_of))
        else:
            labels, identities = dense_labels(values)
        if header is None:
            _check_labels(path, found, labels, len(identities))
        found.left_out.say(path, len(labels))
        file_of, offsets = np.frombuffer(found.file_of, np.int32), np.frombuffer(found.offsets, np.int64)
        digest = header.digest if header else content_digest(shards, offsets, labels)
        sizes = np.frombuffer(found.sizes, np.int64)
        reader = FileRecords(RecordFiles(shards), file_of, offsets, found.names, sizes=sizes)
        return RecordSet(path, labels, identities, digest, reader, found.left_out.counts)


class WebdatasetWriter:
    """Writes shards one after the other; labels are filled in at the end, when they are known."""

    def __init__(self, folder: Path, name: str, scratch: Path, records_per_shard: int, state: dict[str, Any]) -> None:
        self._records = RecordAppender(
            lambda shard: folder / f"{name}-{shard:06d}.tar", scratch, state, max_records=records_per_shard, end=TAR_END
        )
        self.commit, self.close = self._records.commit, self._records.close

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image."""
        key = f"{escape_folder(identity)}/{escape_stem(sample)}"
        record = tar_entry(f"{key}{suffix_of(data)}", data) + tar_entry(f"{key}.cls", bytes(_LABEL_BYTES))
        self._records.append(record, place=len(record) - BLOCK)

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Publish the last shard and fill in the labels of all."""
        places = self._records.finish()
        for shard in range(int(places["file"][-1]) + 1):
            rows = np.flatnonzero(places["file"] == shard)
            offsets = places["offset"][rows].tolist()
            fields = ((o, b"%-10d" % label) for o, label in zip(offsets, labels[rows].tolist(), strict=True))
            fill_in(self._records.path_of(shard), fields)


class _ShardContent:
    """Images and labels found in the headers of all shards.

    Labels are integers, or indices into `names_of` when they are names of folders or texts of .json files.
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
            UserError: It has no label and no folder, or its label is of another kind than those before.
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


def _find_shards(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the tar files of a folder, by name; other files beside them are counted.

    Raises:
        UserError: There are none, or there are archives that are no plain ones or have another ending.
    """
    files = visible_files(folder, "")
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


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith((".tar", *_COMPRESSED)) and bool(_COMPRESSIONS.match(first_bytes(path, 8)))


def _check_labels(path: Path, found: _ShardContent, labels: np.ndarray, num_identities: int) -> None:
    """Refuse labels that belong to no image or may be no identities; warn of a single identity.

    A `.json` or `.txt` may hold a label of something else, of an age group for example. When the folders divide the
    images more finely, they may be the identities.
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


def _scan_shards(shards: list[Path], found: _ShardContent, is_ours: bool) -> None:
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
