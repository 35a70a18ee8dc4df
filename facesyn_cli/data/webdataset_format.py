"""Record format `webdataset`: tar shards of `<key>.<image suffix>` and `<key>.cls`, in plain tar.

Layout of a set called N in an output folder R:

    R/N/N-000000.tar ...    10,000 images a shard; members `identity/sample.jpg`, `identity/sample.cls`
    R/labels.txt            which label is which identity; written by `facesyn pack`

`facesyn sample` writes the same without `.cls` and labels.txt: labels are assigned by `pack` alone.

The content of a `.cls` is the integer label as text, as webdataset decodes it; here with blanks after it, so
that every one takes 10 bytes and can be filled in when the labels are known. `webdataset.WebDataset(
"R/N/N-{000000..000012}.tar").decode("pil").to_tuple("jpg;png;webp;bmp", "cls")` reads the set.

A key is a path up to the first dot of the file's name, as webdataset has it. Of sets without `.cls` the
identity is the folder of the key. Compressed archives (.tar.gz) are refused: their images cannot be found
without unpacking everything before them.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.files import explain
from facesyn_cli.artifacts.images import SUFFIXES
from facesyn_cli.artifacts.output import Header
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.data.append_file import AppendFile
from facesyn_cli.data.growing_file import GrowingFile
from facesyn_cli.data.kept_images import KeptImagesConfig, fit_kept
from facesyn_cli.data.record_files import RecordFiles, SliceReader, content_digest, first_bytes, visible_files
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_names import (
    MAX_LABEL,
    NameList,
    dense_labels,
    escape_folder,
    escape_stem,
    named_labels,
    our_labels,
    unescape_name,
)
from facesyn_cli.data.tar_members import BLOCK, TarMember, is_tar, read_members, tar_header, tar_padding
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

_LABEL_BYTES = 10
_END = bytes(2 * BLOCK)
_PLACE = np.dtype([("shard", "<i4"), ("offset", "<i8")])
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


class WebdatasetConfig(KeptImagesConfig):
    """Settings of `webdataset`."""

    records_per_shard: int = Field(10_000, gt=0)   # about 80 MB of 112-pixel JPEGs


@register("record_format", "webdataset", Card("Tar shards of images and .cls labels, as the webdataset package reads."))
def build_webdataset(cfg: WebdatasetConfig) -> RecordFormat:
    """Build the format."""
    return WebdatasetFormat(cfg)


class WebdatasetFormat:
    """Reads and writes tar shards; see the module docstring."""

    kind = "RecordSet"

    def __init__(self, cfg: WebdatasetConfig) -> None:
        self.cfg = cfg

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image untouched when it has the right size, else resized."""
        return fit_kept(data, size, self.cfg.quality)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> WebdatasetWriter:
        """Open a set for writing at the state of its last commit."""
        return WebdatasetWriter(folder / name, name, scratch, self.cfg.records_per_shard, state)

    def recognises(self, path: Path) -> bool:
        """True for a tar file, and for a folder of tar files without sub-folders."""
        shards = [path] if path.is_file() else _shards(path)
        if not shards or not is_tar(first_bytes(shards[0], BLOCK)):
            return False
        # Otherwise a folder of images with an archive lying about.
        return path.is_file() or not any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a folder of tar shards, or one shard.

        Raises:
            UserError: A shard is damaged, truncated, compressed, or holds labels of another kind.
        """
        folder = path / str(header.extra.get("name")) if header else path
        shards = [path] if path.is_file() else _shards(folder)
        if not shards:
            raise UserError(f"{folder} holds no .tar files")
        found = _scan(shards, header is not None)
        values = np.frombuffer(found.labels, np.int64)
        if header is not None and not found.unlabelled:
            labels, identities = our_labels(values, path)
        elif found.unlabelled:
            labels, identities = named_labels(values, list(found.folders))
        else:
            labels, identities = dense_labels(values)
        file_of, offsets = np.frombuffer(found.file_of, np.int32), np.frombuffer(found.offsets, np.int64)
        digest = header.digest if header else content_digest(shards, offsets, labels)
        reader = SliceReader(RecordFiles(shards), file_of, offsets, np.frombuffer(found.sizes, np.int64), found.names)
        return RecordSet(path, labels, identities, digest, reader)


class WebdatasetWriter:
    """Writes shards one after the other; labels are filled in at the end, when they are known."""

    def __init__(self, folder: Path, name: str, scratch: Path, records_per_shard: int, state: dict[str, Any]) -> None:
        self.folder, self.name, self.records_per_shard = folder, name, records_per_shard
        self.num_records = int(state.get("records", 0))
        self._places = AppendFile(scratch / "places", self.num_records * _PLACE.itemsize)
        self._shard = int(state.get("shard", 0))
        self._file = GrowingFile(self._path(self._shard), int(state.get("bytes", 0)))

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image."""
        if self.num_records and self.num_records == (self._shard + 1) * self.records_per_shard:
            self._close_shard()
            self._shard += 1
            self._file = GrowingFile(self._path(self._shard))
        key = f"{escape_folder(identity)}/{escape_stem(sample)}"
        image = (tar_header(f"{key}{suffix_of(data)}", len(data)), data, tar_padding(len(data)))
        self._file.write(b"".join((*image, tar_header(f"{key}.cls", _LABEL_BYTES))))
        offset = self._file.write(bytes(BLOCK))
        self._places.write(struct.pack("<iq", self._shard, offset))
        self.num_records += 1

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to restore from."""
        self._places.sync()
        return {"records": self.num_records, "shard": self._shard, "bytes": self._file.sync()}

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Close the last shard and fill in the labels of all.

        Args:
            labels: (N,) label of every record.
            samples: Not needed: the names are known since `append`.
        """
        self._close_shard()
        self._places.close()
        places = np.fromfile(self._places.path, dtype=_PLACE)
        for shard in range(self._shard + 1):
            rows = np.flatnonzero(places["shard"] == shard)
            _fill_in(self._path(shard), places["offset"][rows], labels[rows])

    def close(self) -> None:
        """Close the open files."""
        self._file.close()
        self._places.close()

    def _close_shard(self) -> None:
        self._file.write(_END)
        self._file.publish()

    def _path(self, shard: int) -> Path:
        return self.folder / f"{self.name}-{shard:06d}.tar"


@dataclass
class _Found:
    """What the headers of all shards say; `labels` are numbers of `folders` where there are no labels."""

    file_of: array
    offsets: array
    sizes: array
    labels: array
    names: NameList
    folders: dict[str, int]
    unlabelled: int = 0


def _shards(folder: Path) -> list[Path]:
    return visible_files(folder, ".tar") if folder.is_dir() else []


def _fill_in(path: Path, offsets: np.ndarray, labels: np.ndarray) -> None:
    try:
        with open(path, "r+b", buffering=0) as file:
            for offset, label in zip(offsets.tolist(), labels.tolist(), strict=True):
                os.pwrite(file.fileno(), b"%-10d" % label, offset)
            os.fsync(file.fileno())
    except OSError as error:
        raise explain(error, path) from error


def _scan(shards: list[Path], is_ours: bool) -> _Found:
    """Find the images and labels of all shards."""
    found = _Found(array("i"), array("q"), array("q"), array("q"), NameList(), {})
    for number, path in enumerate(shards):
        try:
            with open(path, "rb") as file:
                if not is_tar(file.read(BLOCK)):
                    raise UserError(f"{path} is no plain tar archive; unpack or re-create it without compression")
                for key, image, label in _samples(path, file):
                    _add(found, path, number, key, image, label, is_ours)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not len(found.names):
        raise UserError(f"{shards[0]} holds no images with a key such as `000/12.jpg`")
    return found


def _add(
    found: _Found, path: Path, number: int, key: str, image: TarMember, label: int | None, is_ours: bool
) -> None:
    folder, _, stem = key.rpartition("/")
    if (label is None) != bool(found.unlabelled) and len(found.names):
        raise UserError(f"{path}: some images have a .cls and others none; {key} is the first of the others")
    if label is None:
        found.unlabelled += 1
        folder = folder.removeprefix("./")
        if not folder:
            raise UserError(f"{path}: {key} has neither a .cls nor a folder that says whose face it is")
        label = found.folders.setdefault(unescape_name(folder) if is_ours else folder, len(found.folders))
    found.file_of.append(number)
    found.offsets.append(image.offset)
    found.sizes.append(image.size)
    found.labels.append(label)
    found.names.append(unescape_name(stem) if is_ours else stem)


def _samples(path: Path, file: BinaryIO) -> Iterator[tuple[str, TarMember, int | None]]:
    """Yield (key, image, label) of every sample that has an image: members with one key that follow each other."""
    current, image, label = None, None, None
    for member in read_members(path, file):
        parts = _KEY.fullmatch(member.name)
        if parts is None or parts[1].rpartition("/")[2].startswith("__"):
            continue  # as webdataset does
        if parts[1] != current:
            if image is not None:
                yield current, image, label
            current, image, label = parts[1], None, None
        suffix = parts[2].lower().rpartition(".")[2]
        if f".{suffix}" in SUFFIXES and image is None:
            image = member
        elif suffix == "cls":
            label = _label(path, member, file)
    if image is not None:
        yield current, image, label


def _label(path: Path, member: TarMember, file: BinaryIO) -> int:
    file.seek(member.offset)
    text = file.read(min(member.size, 40)).strip()
    if member.size > 40 or not text.isdigit() or int(text) > MAX_LABEL:
        raise UserError(f"{path}: {member.name} holds {text!r}; a whole number from 0 to {MAX_LABEL} was expected")
    return int(text)
