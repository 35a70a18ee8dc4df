r"""Record format `tfrecord`: TFRecord shards with both published index layouts, without TensorFlow.

Layout of a set called N in an output folder R, chosen so that both published readers find everything:

    R/N/N-00000.tfrecord ...   Examples with the feature `image`, up to 500,000 a shard
    R/N/N.index                `N/<label>/<sample>.jpg \t shard \t byte offset`
                               ADMIS (METHOD TF-Synthetic, DATA_ROOT = R/N) takes the folder as the label
    R/N.txt                    `N \t shard \t byte offset \t label`
                               TFace (DATA_ROOT = INDEX_ROOT = R) reads records only when `TFR` is in N
    R/labels.txt               which label is which identity; written by `facesyn pack`

Published sets have one of the two indexes, where the folder of the image or the fourth column is the identity.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import escape_name, unescape_name
from facesyn_cli.artifacts.record_set import LABELS, RecordSet, natural_labels
from facesyn_cli.data.append_files import RecordAppender
from facesyn_cli.data.pixels import JPEG_QUALITY
from facesyn_cli.data.record_files import FileRecords, LeftOut, RecordFiles, parsed_lines, stem_of, visible_files
from facesyn_cli.data.record_images import fit_jpeg
from facesyn_cli.data.record_labels import read_labels
from facesyn_cli.data.tfrecord_framing import encode_example, frame, read_image
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.untrusted.input_files import read_byte_lines, read_start

_MAX_LINE = 4096 + 96  # bytes of a path and of three numbers


class TfrecordConfig(PluginConfig):
    """Settings of `tfrecord`."""

    records_per_shard: int = Field(500_000, gt=0, description="records in a shard; the default is as published")
    quality: int = Field(
        JPEG_QUALITY, ge=1, le=100, description="JPEG quality of images that are not yet a JPEG of the right size"
    )
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:2:0", description="chroma subsampling of these images; 4:2:0 is OpenCV's default"
    )

    @field_validator("subsampling", mode="before")
    @classmethod
    def _undo_yaml(cls, value: Any) -> Any:
        """YAML reads an unquoted 4:2:0 as a number to base 60."""
        of_number = {((4 * 60) + b) * 60 + c: f"4:{b}:{c}" for b, c in ((4, 4), (2, 2), (2, 0))}
        return of_number.get(value, value) if isinstance(value, int) else value


@register(
    "record_format", "tfrecord",
    Card("TFRecord shards with the index files of ADMIS (3 columns) and TFace (4 columns).",
         "Tencent TFace; FRCSyn 2024, ADMIS"),
)
class TfrecordFormat:
    """Reads and writes TFRecord sets; see the module docstring."""

    kind = "RecordSet"

    def __init__(self, cfg: TfrecordConfig) -> None:
        self.cfg = cfg

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image as a JPEG of the right size, untouched when it already is one."""
        return fit_jpeg(data, size, self.cfg.quality, self.cfg.subsampling)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> TfrecordWriter:
        """Open a set for writing at the state of its last commit."""
        return TfrecordWriter(folder, name, scratch, self.cfg.records_per_shard, state)

    def recognizes(self, path: Path) -> bool:
        """True for an index file and for a folder that holds one."""
        return looks_like_index(path) if path.is_file() else bool(find_index(path))

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a published folder with one index in it, or a published index file.

        Raises:
            UserError: The index or a record file is missing or does not fit.
        """
        if header is not None:
            name = header.extra.get("name")
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{path}: the header names no set")
            index = read_index(path / name / f"{name}.index", identities=read_labels(path / LABELS))
            digest = header.digest
        else:
            candidates = [path] if path.is_file() else find_index(path)
            if len(candidates) != 1:
                found = ", ".join(p.name for p in candidates) or "none"
                raise UserError(f"{path}: one index file was expected, found {found}; name the file itself")
            index = read_index(candidates[0])
            sizes = [[file.name, file.stat().st_size] for file in index.files]
            digest = json_digest([file_digest(index.path), sizes])
        left_out = LeftOut()
        for file in _unnamed_files(index):
            left_out.add(f"record files that {index.path.name} does not name", file.name)
        left_out.say(index.path, len(index.labels))
        samples = IndexSamples(index.path, header is not None)
        reader = FileRecords(RecordFiles(index.files), index.file_of, index.offsets, samples, read_image)
        return RecordSet(path, index.labels, index.identities, digest, reader, left_out.counts)


class TfrecordWriter:
    """Writes shards one after the other, and the index files at the end."""

    def __init__(self, folder: Path, name: str, scratch: Path, records_per_shard: int, state: dict[str, Any]) -> None:
        self.folder, self.name = folder, name
        self._records = RecordAppender(
            lambda shard: folder / name / f"{name}-{shard:05d}.tfrecord", scratch, state, max_records=records_per_shard
        )
        self.commit, self.close = self._records.commit, self._records.close

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image."""
        self._records.append(frame(encode_example(data)))

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Publish the last shard and write both index files."""
        places, name = self._records.finish(), self.name
        with (
            write_atomically(self.folder / name / f"{name}.index") as admis,
            write_atomically(self.folder / f"{name}.txt") as tface,
            open(admis, "w", encoding="utf-8", newline="\n") as admis_file,
            open(tface, "w", encoding="utf-8", newline="\n") as tface_file,
        ):
            for (shard, offset), label, sample in zip(places, labels, samples, strict=True):
                admis_file.write(f"{name}/{label}/{escape_name(sample)}.jpg\t{shard}\t{offset}\n")
                tface_file.write(f"{name}\t{shard}\t{offset}\t{label}\n")


def _unnamed_files(index: RecordIndex) -> list[Path]:
    """Return the files beside the shards of an index that are named like them and are not in it."""
    stems = {(file.parent, file.name.rpartition("-")[0]) for file in index.files}
    beside = [file for folder, stem in stems for file in visible_files(folder, ".tfrecord")
              if file.name.rpartition("-")[0] == stem]
    return sorted(set(beside) - set(index.files))


@dataclass(frozen=True)
class RecordIndex:
    """Places and labels of the N records of a set, in arrays of 16 bytes a record.

    Args:
        path: The index file.
        files: Record files.
        file_of: (N,) int32, number of the record file.
        offsets: (N,) int64, byte at which the record starts.
        labels: (N,) int32.
        identities: Name of the identity of every label.
    """

    path: Path
    files: list[Path]
    file_of: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    identities: list[str]


def looks_like_index(path: Path) -> bool:
    """True when the first line of a file is one of the two kinds of lines."""
    if path.suffix not in (".index", ".txt"):
        return False
    try:
        columns = read_start(path, 65536).partition(b"\n")[0].split(b"\t")
    except UserError:
        return False
    return len(columns) in (3, 4) and all(column.strip().isdigit() for column in columns[1:])


def find_index(folder: Path) -> list[Path]:
    """Return the index files in a folder; of two with one stem the `.txt`, whose labels are explicit."""
    found = [p for p in sorted(folder.iterdir()) if p.is_file() and looks_like_index(p)] if folder.is_dir() else []
    return [p for p in found if p.suffix == ".txt" or p.with_suffix(".txt") not in found]


def read_index(path: Path, identities: list[str] | None = None) -> RecordIndex:
    """Read an index and find its record files.

    Args:
        path: The index.
        identities: Names of the labels 0, 1, ... when the index holds labels of ours; None: the names in the
            index become labels in their natural order.

    Raises:
        UserError: Naming the line that is wrong, the record file that is missing or too short.
    """
    names: dict[bytes, int] = {}
    places: dict[tuple[bytes, int], int] = {}
    file_of, offsets, name_of = array("i"), array("q"), array("i")
    expected = "`path/identity/image, shard, offset` or `set, shard, offset, label`"
    for owner, shard, offset, name in parsed_lines(path, _columns, expected, max_line=_MAX_LINE):
        offsets.append(offset)
        file_of.append(places.setdefault((owner, shard), len(places)))
        name_of.append(names.setdefault(name, len(names)))
    if not names:
        raise UserError(f"the index {path} is empty")
    files = [_record_file(path, owner.decode("utf-8", "replace"), shard) for owner, shard in places]
    index_files = np.frombuffer(file_of, dtype=np.int32)
    starts = np.frombuffer(offsets, dtype=np.int64)
    _check_sizes(path, files, index_files, starts)
    known, label_of_name = _labels(path, [name.decode("utf-8", "replace") for name in names], identities)
    return RecordIndex(path, files, index_files, starts, label_of_name[np.frombuffer(name_of, dtype=np.int32)], known)


@dataclass(frozen=True)
class IndexSamples:
    """Sample names of an index, read from the file each time: the name without suffix, or a number within its identity.

    Args:
        path: The index.
        is_escaped: The names were written by `escape_name`.
    """

    path: Path
    is_escaped: bool

    def __iter__(self) -> Iterator[str]:
        counts: Counter[bytes] = Counter()
        for line in read_byte_lines(self.path, "an index of records", _MAX_LINE):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) == 3:
                name = stem_of(columns[0].decode("utf-8", "replace"))
                yield unescape_name(name) if self.is_escaped else name
            else:
                yield str(counts[columns[3]])
                counts[columns[3]] += 1


def _columns(line: bytes) -> tuple[bytes, int, int, bytes]:
    """Return (set or empty, shard, offset, identity or label) of one line."""
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) not in (3, 4):
        raise ValueError("number of columns")
    shard, offset = int(columns[1]), int(columns[2])
    if shard < 0 or not 0 <= offset < 2**63:
        raise ValueError("negative number, or too large")
    if len(columns) == 4:
        # With slashes in the first column ADMIS, too, takes the set's name from the index file.
        owner = b"" if b"/" in columns[0] else columns[0]
        return owner, shard, offset, b"%d" % int(columns[3])
    parts = columns[0].rsplit(b"/", 2)
    if len(parts) < 2:
        raise ValueError("the image path has no folder")
    return b"", shard, offset, parts[-2]


def _record_file(index: Path, owner: str, shard: int) -> Path:
    """Return the record file of a shard; `owner` is the set's name where the line holds one."""
    name = owner or index.stem
    file = f"{name}-{shard:05d}.tfrecord"
    places = [index.parent / name / file, index.parent / file] if owner else [index.parent / file]
    for place in places:
        if Path(name).name == name and place.is_file():
            return place
    raise UserError(f"the index {index} needs {' or '.join(str(p) for p in places)}, which does not exist")


def _check_sizes(index: Path, files: list[Path], file_of: np.ndarray, offsets: np.ndarray) -> None:
    last = np.zeros(len(files), dtype=np.int64)
    np.maximum.at(last, file_of, offsets)
    for file, offset in zip(files, last, strict=True):
        size = file.stat().st_size
        if offset >= size:
            raise UserError(f"{file} has {size} bytes but {index} has a record at byte {offset}; is it truncated?")


def _labels(index: Path, names: list[str], identities: list[str] | None) -> tuple[list[str], np.ndarray]:
    if identities is None:
        return natural_labels(names)
    labels = [int(name) if name.isdecimal() else -1 for name in names]
    if min(labels) < 0 or max(labels) >= len(identities):
        raise UserError(f"{index} holds labels that are not among the {len(identities)} of its {LABELS}")
    return identities, np.array(labels, dtype=np.int32)
