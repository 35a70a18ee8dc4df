"""RecordSet: encoded images with integer labels in a few large files.

The layout of the files is defined by a `record_format` plugin; the interface of the plugins is defined here.
Integer labels are 0..num_classes-1 without gaps, in natural order of the identities' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from facesyn_cli.artifacts.header import BEGUN, HEADER, Header, Parent, is_ours, require_header
from facesyn_cli.artifacts.image_set import natural_key
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.names import nfc
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.untrusted.input_files import check_input

LABELS = "labels.txt"      # our sets: one line `label \t identity \t number of images` per identity


class RecordReader(Protocol):
    """Random access to the images of a set; picklable, usable from several processes and threads.

    Attributes:
        paths: The files that hold the images; where a reader lacks it, the path of the set stands for them.
    """

    paths: list[Path]

    def read(self, index: int) -> bytes:
        """Return one encoded image."""

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record, in order."""


class RecordWriter(Protocol):
    """Writes one set; everything before the last `commit` survives a kill."""

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image."""

    def commit(self) -> dict[str, Any]:
        """Make everything appended so far durable; return the state to restore from."""

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Close the set: (N,) labels and the sample names of all records, in order."""

    def close(self) -> None:
        """Release open files; the set may be unfinished."""


class RecordFormat(Protocol):
    """Layout of a packed set on disk; what a `record_format` plugin builds.

    Attributes:
        kind: Kind of artifact its folder is, `RecordSet` or `ImageSet`.
    """

    kind: str

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return an encoded image in the form that the format stores; unchanged when it already fits."""

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> RecordWriter:
        """Open a set for writing, at the state of the last commit or, with an empty one, from the start.

        Args:
            folder: Output folder.
            name: Name of the set.
            scratch: Folder for files that are needed until the set is finished.
            state: What `commit` returned, or {}.
        """

    def recognizes(self, path: Path) -> bool:
        """True when `path` looks like a set of this format without a header of ours."""

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open a set; `header` is that of our own folders."""


@dataclass(frozen=True)
class RecordSet:
    """A packed set, opened for reading.

    Args:
        path: Where it lies.
        labels: (N,) int32 label of every record.
        identities: Name of the identity of every label.
        digest: Digest of the set.
        reader: Access to the images.
        left_out: Content of the files that is not used: reason -> count.
    """

    path: Path
    labels: np.ndarray
    identities: list[str]
    digest: str
    reader: RecordReader
    left_out: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, format_name: str | None = None) -> RecordSet:
        """Open a folder written by `facesyn pack`, or a published folder or index file.

        Args:
            path: The folder or index.
            format_name: Name of a record format; None tries every format.

        Raises:
            UserError: Nothing there, unfinished, or no set of records.
        """
        path = Path(path)
        if not path.exists():
            raise missing_input(path, "a set of records")
        check_input(path, "a set of records")
        header = None
        if is_ours(path):
            header = require_header(path, "RecordSet")
            format_name = str(header.extra.get("format"))
        for name in [format_name] if format_name else registry.available("record_format"):
            plugin = build_format(name)
            if format_name or plugin.recognizes(path):
                records = plugin.open(path, header)
                stated = header.counts.get("images") if header else None
                if stated is not None and stated != len(records):
                    raise UserError(f"{path} was written with {stated} images and holds {len(records)}; is a file "
                                    "gone?")
                return records
        raise UserError(f"{path} holds no records of any known format; an index file with its records was expected")

    @staticmethod
    def recognizes(path: Path) -> bool:
        """True when `open` would find a set of records here (it may still turn out to be damaged)."""
        path = Path(path)
        check_input(path, "images or a set of records")
        if is_ours(path):
            return Header.read(path / (HEADER if (path / HEADER).is_file() else BEGUN)).kind == "RecordSet"
        return any(build_format(name).recognizes(path) for name in registry.available("record_format"))

    @property
    def num_classes(self) -> int:
        """Number of identities."""
        return len(self.identities)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return the encoded image of one record.

        Raises:
            UserError: The record is damaged or its file is gone.
        """
        return self.reader.read(index)

    def files(self) -> list[Path]:
        """Return the files that hold the images."""
        return list(getattr(self.reader, "paths", [self.path]))

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yield (identity, sample) of every record, in order."""
        for label, sample in zip(self.labels, self.reader.samples(), strict=True):
            yield self.identities[label], sample

    def parent(self) -> Parent:
        """Return this set as an input for a header."""
        return Parent(str(self.path), self.digest)


def build_format(name: str) -> RecordFormat:
    """Build a record format with its default settings."""
    return registry.build("record_format", registry.configure("record_format", {"name": name}))


def natural_labels(names: list[str]) -> tuple[list[str], np.ndarray]:
    """Give every name its label: its rank in natural order. Names that are equal in Unicode NFC are one identity.

    Args:
        names: Names in any order; macOS and Linux spell the same `é` differently.

    Returns:
        The different names in NFC, in order of their labels, and (len(names),) int32: the label of each given name.
    """
    normal = [nfc(name) for name in names]
    identities = sorted(set(normal), key=natural_key)
    label_of = {name: label for label, name in enumerate(identities)}
    return identities, np.array([label_of[name] for name in normal], dtype=np.int32)
