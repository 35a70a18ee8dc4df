"""Image sets in tar shards: what `facesyn sample layout=tar` writes, and what other stages derive from it.

Such a set is a RecordSet in format `webdataset` without labels, which `pack` alone assigns. Members are
`identity/sample.png`, in `R/N/*.tar` of a set called N in folder R. A stage that changes a set writes the shards in
which something changes and links the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.image_set import ImageEntry, natural_key
from facesyn_cli.artifacts.names import escape_folder, escape_stem
from facesyn_cli.artifacts.record_set import LABELS, RecordSet
from facesyn_cli.data.record_files import NameList
from facesyn_cli.data.tar_archive import write_tar
from facesyn_cli.errors import UserError

FORMAT = "webdataset"
_NOTES = ".shards"  # folder of notes: the content of each shard that was written here


class TarSet:
    """A set in tar shards, opened for reading.

    Args:
        records: The set.
        name: Its name, which is that of the folder the shards are in.
    """

    def __init__(self, records: RecordSet, name: str) -> None:
        self.path, self.records, self.name = records.path, records, name

    @staticmethod
    def open(path: Path) -> TarSet:
        """Open a set.

        Raises:
            UserError: It is none of facesyn in tar shards, has labels already, or is damaged.
        """
        header = read_header(path) if path.is_dir() else None
        records = RecordSet.open(path)  # refuses an unfinished one
        if header is None or header.extra.get("format") != FORMAT or (path / LABELS).exists():
            raise UserError(
                f"{path} is a packed set; images, or tar shards of `facesyn sample layout=tar`, were expected: labels "
                "come last, with `facesyn pack`"
            )
        return TarSet(records, str(header.extra.get("name")))

    @property
    def shards(self) -> list[Path]:
        """The tar files, by name."""
        return self.records.reader.files.paths

    @property
    def extra(self) -> dict[str, Any]:
        """Entries of the header of a set with this name."""
        return {"format": FORMAT, "name": self.name}

    def counts(self) -> dict[str, int]:
        """Return how many images each identity has."""
        counts = np.bincount(self.records.labels, minlength=self.records.num_classes)
        return dict(zip(self.records.identities, counts.tolist(), strict=True))

    def groups(self) -> Iterator[tuple[str, list[ImageEntry]]]:
        """Yield each identity with its images in natural order; of millions of images only these are in memory."""
        names = NameList()
        for sample in self.records.reader.samples():
            names.append(sample)
        labels = self.records.labels
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=self.records.num_classes))
        for label, identity in enumerate(self.records.identities):
            rows = order[ends[label - 1] if label else 0 : ends[label]].tolist()
            entries = [ImageEntry(f"{identity}/{names[row]}", identity, names[row], str(row)) for row in rows]
            yield identity, sorted(entries, key=lambda entry: natural_key(entry.sample))

    def read(self, entry: ImageEntry) -> bytes:
        """Return the encoded bytes of an image of `groups`.

        Raises:
            UserError: A shard is damaged or gone.
        """
        return self.records.read(int(entry.location))

    def rows_of(self, shard: int) -> NDArray[np.int64]:
        """Return the records of a shard by its number, in the order in which they lie there."""
        return np.flatnonzero(self.records.reader.file_of == shard)

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return self.records.parent()


@dataclass(frozen=True)
class TarImage:
    """An image of a shard to write.

    Args:
        identity: Its identity.
        sample: Its sample name.
        suffix: Of the file, with its dot.
        read: Returns its encoded bytes.
    """

    identity: str
    sample: str
    suffix: str
    read: Callable[[], bytes]

    @property
    def member(self) -> str:
        """Name in the archive."""
        return f"{escape_folder(self.identity)}/{escape_stem(self.sample)}{self.suffix}"


def make_shard(folder: Path, name: str, file: str, images: Sequence[TarImage]) -> None:
    """Write the shard `file` (with `.tar`) of a set, unless it has these images already; it appears by rename.

    Raises:
        UserError: An image cannot be read, or the shard not be written.
    """
    path, note = folder / name / file, folder / _NOTES / f"{file}.json"
    content = json_digest([image.member for image in images])
    if path.is_file() and note.is_file() and read_json(note) == {"members": content, "bytes": path.stat().st_size}:
        return
    write_tar(path, ((image.member, image.read()) for image in images))
    write_json(note, {"members": content, "bytes": path.stat().st_size})
