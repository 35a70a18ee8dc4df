"""Record format `webdataset`: tar shards of `<key>.<image suffix>` and `<key>.cls`, in plain tar.

Layout of a set called N in an output folder R:

    R/N/N-000000.tar ...    10,000 images a shard; members `identity/sample.jpg`, `identity/sample.cls`
    R/labels.txt            which label is which identity; written by `facesyn pack`

`facesyn sample` writes the same without `.cls` and labels.txt: labels are assigned by `pack` alone.

The content of a `.cls` is the integer label as text, as webdataset decodes it; here with blanks after it, so
that every one takes 10 bytes and can be filled in when the labels are known. `webdataset.WebDataset(
"R/N/N-{000000..000012}.tar").decode("pil").to_tuple("jpg;png;webp;bmp", "cls")` reads the set.

How images and labels are grouped, and which labels are read besides `.cls`, is in `tar_samples.py`. Of sets without
labels the identity is the folder of the key. Compressed archives (.tar.gz) are refused, also where they lie beside
others: their images cannot be found without unpacking everything before them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.atomic_files import as_user_error
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.data.append_file import AppendFile
from facesyn_cli.data.growing_file import GrowingFile
from facesyn_cli.data.passthrough import PassthroughConfig, fit_passthrough
from facesyn_cli.data.record_files import RecordFiles, SliceReader, content_digest
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_names import (
    dense_labels,
    escape_folder,
    escape_stem,
    named_labels,
    our_labels,
)
from facesyn_cli.data.tar_members import BLOCK, tar_header, tar_padding
from facesyn_cli.data.tar_scan import ShardContent, check_labels, find_shards, is_shard_set, scan_shards
from facesyn_cli.plugins.registry import Card, register

_LABEL_BYTES = 10
_END = bytes(2 * BLOCK)
_PLACE = np.dtype([("shard", "<i4"), ("offset", "<i8")])


class WebdatasetConfig(PassthroughConfig):
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
        return fit_passthrough(data, size, self.cfg.quality)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> WebdatasetWriter:
        """Open a set for writing at the state of its last commit."""
        return WebdatasetWriter(folder / name, name, scratch, self.cfg.records_per_shard, state)

    def recognizes(self, path: Path) -> bool:
        """True for a tar file, and for a folder of tar files without sub-folders."""
        return is_shard_set(path)

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a folder of tar shards, or one shard.

        Raises:
            UserError: A shard is damaged, truncated, compressed, or holds labels of another kind.
        """
        folder = path / str(header.extra.get("name")) if header else path
        found = ShardContent()
        shards = [path] if path.is_file() else find_shards(folder, found.left_out)
        scan_shards(shards, found, header is not None)
        values = np.frombuffer(found.labels, np.int64)
        if header is not None and found.source == "cls":
            labels, identities = our_labels(values, path)
        elif found.names_of:
            labels, identities = named_labels(values, list(found.names_of))
        else:
            labels, identities = dense_labels(values)
        if header is None:
            check_labels(path, found, labels, len(identities))
        found.left_out.say(path, len(labels))
        file_of, offsets = np.frombuffer(found.file_of, np.int32), np.frombuffer(found.offsets, np.int64)
        digest = header.digest if header else content_digest(shards, offsets, labels)
        reader = SliceReader(RecordFiles(shards), file_of, offsets, np.frombuffer(found.sizes, np.int64), found.names)
        return RecordSet(path, labels, identities, digest, reader, found.left_out.counts)


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


def _fill_in(path: Path, offsets: np.ndarray, labels: np.ndarray) -> None:
    try:
        with open(path, "r+b", buffering=0) as file:
            for offset, label in zip(offsets.tolist(), labels.tolist(), strict=True):
                os.pwrite(file.fileno(), b"%-10d" % label, offset)
            os.fsync(file.fileno())
    except OSError as error:
        raise as_user_error(error, path) from error
