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

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import escape_folder, escape_stem
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.data.append_files import RecordAppender, fill_in
from facesyn_cli.data.record_files import FileRecords, RecordFiles, content_digest
from facesyn_cli.data.record_images import PassthroughConfig, PassthroughFormat, suffix_of
from facesyn_cli.data.record_labels import dense_labels, named_labels, our_labels
from facesyn_cli.data.tar_archive import BLOCK, TAR_END, tar_entry
from facesyn_cli.data.tar_scan import ShardContent, check_labels, find_shards, is_shard_set, scan_shards
from facesyn_cli.plugins.registry import Card, register

_LABEL_BYTES = 10


class WebdatasetConfig(PassthroughConfig):
    """Settings of `webdataset`."""

    records_per_shard: int = Field(10_000, gt=0)   # about 80 MB of 112-pixel JPEGs


@register("record_format", "webdataset", Card("Tar shards of images and .cls labels, as the webdataset package reads."))
def build_webdataset(cfg: WebdatasetConfig) -> RecordFormat:
    """Build the format."""
    return WebdatasetFormat(cfg)


class WebdatasetFormat(PassthroughFormat):
    """Reads and writes tar shards; see the module docstring."""

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
