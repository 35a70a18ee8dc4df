"""Record format `parquet`: Parquet files as Hugging Face `datasets` reads and writes them.

Layout of a set called N in an output folder R; `datasets.load_dataset("R/N")` reads it:

    R/N/data/train-00000-of-00012.parquet ...   about 500 MB each, 100 images a row group
        image   struct<bytes: binary, path: string>, feature Image
        label   int64, feature ClassLabel with the names of the identities
        schema metadata `huggingface`: {"info": {"features": {...}}}
    R/labels.txt                                which label is which identity; written by `facesyn pack`

Reads the files of a folder or of its folder `data`; when some are of a split `train`, only those. The image column is
the one whose feature is Image, or called `image`; the label column the one whose feature is ClassLabel, or called
`label`; labels may be integers or names.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import escape_name, unescape_name
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.console import log
from facesyn_cli.data.append_files import Spool, SpooledRecord
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.record_files import (
    LeftOut,
    NameList,
    content_digest,
    first_bytes,
    formats_package,
    stem_of,
    visible_files,
)
from facesyn_cli.data.record_images import PassthroughConfig, PassthroughFormat, suffix_of
from facesyn_cli.data.record_labels import MAX_LABEL, dense_labels, named_labels, our_labels
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

_MAGIC = b"PAR1"
_ROWS_PER_GROUP = 100         # as datasets writes images: reading one decodes its group
_GROUP_BYTES = 64 * 2**20
_BATCH_ROWS = 100
_BATCHES_KEPT = 8
_LARGE_GROUP = 20_000         # rows


class ParquetConfig(PassthroughConfig):
    """Settings of `parquet`."""

    shard_bytes: int = Field(500_000_000, gt=0, description="bytes of images in a file, about; as datasets writes")


@register("record_format", "parquet", Card("Parquet with image and label columns, as Hugging Face datasets reads it.",
                                           "Hugging Face datasets"))
class ParquetFormat(PassthroughFormat):
    """Reads and writes Parquet sets; see the module docstring."""

    def __init__(self, cfg: ParquetConfig) -> None:
        self.cfg = cfg

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> ParquetWriter:
        """Open a set for writing at the state of its last commit.

        Raises:
            UserError: pyarrow is not installed.
        """
        return ParquetWriter(folder / name, scratch, self.cfg.shard_bytes, state)

    def recognizes(self, path: Path) -> bool:
        """True for a Parquet file and for a folder that holds some, itself or in `data`."""
        files = [path] if path.is_file() else _parquet_files(path)
        return bool(files) and first_bytes(files[0], 4) == _MAGIC

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a folder of Parquet files, or one file.

        Raises:
            UserError: pyarrow is missing, a file is damaged, or it has no columns of images and labels.
        """
        folder = path / str(header.extra.get("name")) if header else path
        files = [path] if path.is_file() else _parquet_files(folder)
        if not files:
            raise UserError(f"{folder} holds no .parquet files")
        left_out = LeftOut()
        for file in [] if path.is_file() else sorted(set(folder.rglob("*.parquet")) - set(files)):
            left_out.add("other Parquet files", file.relative_to(folder).as_posix())
        reader, values, names = _open(files, is_ours=header is not None)
        if header is not None:
            labels, identities = our_labels(values, path)
        elif names is not None:
            labels, identities = named_labels(values, names)
        else:
            labels, identities = dense_labels(values)
        digest = header.digest if header else content_digest(files, labels)
        left_out.say(path, len(labels))
        return RecordSet(path, labels, identities, digest, reader, left_out.counts)


class ParquetWriter:
    """Spools the images, and writes file after file when the labels are known; a killed run resumes there."""

    def __init__(self, folder: Path, scratch: Path, shard_bytes: int, state: dict[str, Any]) -> None:
        self._parquet, self._arrow = formats_package("pyarrow.parquet"), formats_package("pyarrow")
        self.folder = folder
        self._spool = Spool(scratch, shard_bytes, state)
        self.append, self.commit, self.close = self._spool.append, self._spool.commit, self._spool.close

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Write the files."""
        counts = self._spool.finish()
        schema = self._schema(self._spool.identities(labels))
        row = 0
        for part, count in enumerate(counts):
            path = self.folder / "data" / f"train-{part:05d}-of-{len(counts):05d}.parquet"
            if not path.is_file():
                with write_atomically(path) as temporary:
                    self._write(temporary, schema, part, labels[row : row + count])
            self._spool.remove(part)
            row += count

    def _schema(self, identities: list[str]) -> Any:
        features = {"image": {"_type": "Image"}, "label": {"names": identities, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        arrow = self._arrow
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        return arrow.schema([("image", image), ("label", arrow.int64())], metadata=metadata)

    def _write(self, path: Path, schema: Any, part: int, labels: np.ndarray) -> None:
        def write_group(rows: list[SpooledRecord], start: int) -> None:
            images = [{"bytes": r.data, "path": f"{escape_name(r.sample)}{suffix_of(r.data)}"} for r in rows]
            columns = [
                self._arrow.array(images, schema.field("image").type),
                self._arrow.array(labels[start : start + len(rows)], self._arrow.int64()),
            ]
            file.write_table(self._arrow.Table.from_arrays(columns, schema=schema))

        with self._parquet.ParquetWriter(
            str(path), schema, compression="none", use_dictionary=False, write_statistics=["label"]
        ) as file:
            group, size, start = [], 0, 0
            for record in self._spool.read(part):
                if len(group) == _ROWS_PER_GROUP or (group and size + len(record.data) > _GROUP_BYTES):
                    write_group(group, start)
                    start += len(group)
                    group, size = [], 0
                group.append(record)
                size += len(record.data)
            write_group(group, start)


def _parquet_files(folder: Path) -> list[Path]:
    """Return the files of a folder or of its `data`; when some are of a split `train`, only those."""
    files = visible_files(folder, ".parquet") or visible_files(folder / "data", ".parquet")
    return [p for p in files if p.name.startswith("train")] or files


@dataclass(frozen=True)
class _Columns:
    """Names of the columns, and of the classes when the labels are numbers of names."""

    image: str
    label: str
    has_paths: bool
    classes: list[str] | None


class ParquetReader:
    """Random access to the images with flat memory; picklable, usable from several threads.

    A row group is decoded in batches, of which the last few are kept: reading in order costs one pass, and reading at
    random decodes about half a row group per image.

    Args:
        paths: The files.
        column: Name of the image column.
        groups: (G, 3) int64, file, row group within it, and first record of every row group.
        names: Sample name of every record.
    """

    def __init__(self, paths: list[Path], column: str, groups: np.ndarray, names: NameList) -> None:
        self.paths, self.column, self.groups, self.names = paths, column, groups, names
        self._lock = threading.Lock()
        self._process = 0
        self._forget()

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UnreadableImage: The row is there and holds no image.
            UserError: The file is damaged.
        """
        group = int(np.searchsorted(self.groups[:, 2], index, side="right")) - 1
        row = index - int(self.groups[group, 2])
        with self._lock:
            if self._process != os.getpid():
                self._forget()
                self._process = os.getpid()
            data = self._batch(group, row // _BATCH_ROWS)[row % _BATCH_ROWS].as_py()
        if data is None:
            path = self.paths[self.groups[group, 0]]
            raise UnreadableImage(f"{path}, row group {self.groups[group, 1]}, row {row}: the image has no bytes, "
                                  "perhaps only a path to another file; images inside the file were expected")
        return data

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record."""
        return iter(self.names)

    def _forget(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()  # (row group, batch) -> Arrow array
        self._files: dict[int, Any] = {}
        self._cursor: tuple[int, int, Iterator] = (-1, 0, iter(()))  # row group, its next batch, its batches

    def _batch(self, group: int, number: int) -> Any:
        """Return a batch of images of a row group as an Arrow array."""
        if (group, number) not in self._kept:
            path = self.paths[self.groups[group, 0]]
            at, following, batches = self._cursor
            with _explained(path):
                if at != group or following > number:
                    following, batches = 0, self._open_group(group)
                while following <= number:
                    batch = next(batches, None)
                    if batch is None:
                        raise UserError(f"{path}, row group {self.groups[group, 1]} is shorter than announced")
                    column = batch.column(0)
                    self._kept[group, following] = column.field("bytes") if hasattr(column, "field") else column
                    following += 1
                    self._cursor = (group, following, batches)
            while len(self._kept) > _BATCHES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end((group, number))
        return self._kept[group, number]

    def _open_group(self, group: int) -> Iterator:
        number = int(self.groups[group, 0])
        if number not in self._files:
            self._files = {number: _open_file(self.paths[number])}
        return self._files[number].iter_batches(
            _BATCH_ROWS, row_groups=[int(self.groups[group, 1])], columns=[self.column], use_threads=False
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "column": self.column, "groups": self.groups, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _open(paths: list[Path], is_ours: bool) -> tuple[ParquetReader, np.ndarray, list[str] | None]:
    """Open the files of a set and read their labels; the sample names of our sets are unescaped.

    Returns:
        The reader, (N,) int64 labels, and the names of the labels 0, 1, ... where the set has names.

    Raises:
        UserError: Naming the file: damaged, without the columns, or with other columns than the first.
    """
    groups, values, names, names_of, columns = [], array("q"), NameList(), {}, None
    counts: Counter[int] = Counter()
    for number, path in enumerate(paths):
        with _explained(path):
            file = _open_file(path)
            found = _columns(path, file.schema_arrow)
            if columns is not None and found != columns:
                raise UserError(f"{path} has other columns or classes than {paths[0]}")
            columns = found
            limit = MAX_LABEL if columns.classes is None else len(columns.classes)
            for group in range(file.metadata.num_row_groups):
                first = len(values)
                for label, image_path in _rows(file, group, columns):
                    if isinstance(label, str):
                        label = names_of.setdefault(label, len(names_of))
                    if not isinstance(label, int) or not 0 <= label < limit:
                        raise UserError(f"{path}: the label {label!r} of row {len(values)} of the set is no known "
                                        "class")
                    stem = stem_of(image_path or "")
                    names.append((unescape_name(stem) if is_ours else stem) or str(counts[label]))
                    counts[label] += 1
                    values.append(label)
                if len(values) > first:
                    groups.append((number, group, first))
                if len(values) - first > _LARGE_GROUP:
                    log.warning(f"{path}: row group {group} has {len(values) - first} images; reading at random is "
                                "slow, so train on a set packed with --to tfrecord")
    if not values:
        raise UserError(f"{paths[0]} holds no images")
    known = columns.classes if columns.classes is not None else list(names_of) or None
    reader = ParquetReader(paths, columns.image, np.array(groups, np.int64), names)
    return reader, np.frombuffer(values, np.int64), known


def _rows(file: Any, group: int, columns: _Columns) -> Iterator[tuple[Any, str | None]]:
    """Yield the label and the path of the image of every row of a row group."""
    wanted = [columns.label, *([f"{columns.image}.path"] if columns.has_paths else [])]
    for batch in file.iter_batches(8192, row_groups=[group], columns=wanted, use_threads=False):
        labels = batch.column(columns.label).to_pylist()
        paths = batch.column(columns.image).field("path").to_pylist() if columns.has_paths else [None] * len(labels)
        yield from zip(labels, paths, strict=True)


def _columns(path: Path, schema: Any) -> _Columns:
    features = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {name: feature["_type"] for name, feature in features.items() if "_type" in feature}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        features, kinds = {}, {}  # written by another tool: columns are found by name
    images = [n for n, kind in kinds.items() if kind == "Image"] or [n for n in ("image",) if n in schema.names]
    labels = [n for n, kind in kinds.items() if kind == "ClassLabel"] or [n for n in ("label",) if n in schema.names]
    if len(images) != 1 or len(labels) != 1 or not {images[0], labels[0]} <= set(schema.names):
        raise UserError(f"{path}: one column of images (`image`) and one of labels (`label`) were expected, "
                        f"found {', '.join(map(repr, schema.names[:10]))}")
    kind, binary = schema.field(images[0]).type, ("binary", "large_binary")
    fields = {kind.field(i).name: str(kind.field(i).type) for i in range(kind.num_fields)}
    if str(kind) not in binary and fields.get("bytes") not in binary:
        raise UserError(f"{path}: the column {images[0]!r} is {str(kind)[:60]}; `struct<bytes: binary, path: string>` "
                        "was expected")
    classes = features[labels[0]].get("names") if kinds.get(labels[0]) == "ClassLabel" else None
    is_sound = classes is None or (isinstance(classes, list) and all(isinstance(c, str) for c in classes)
                                   and len(set(classes)) == len(classes))
    if not is_sound:
        raise UserError(f"{path}: the names of the classes are not different texts")
    return _Columns(images[0], labels[0], "path" in fields, classes)


def _open_file(path: Path) -> Any:
    parquet = formats_package("pyarrow.parquet")
    return parquet.ParquetFile(str(path), memory_map=False, buffer_size=1 << 16, pre_buffer=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow into one line that names the file."""
    arrow = formats_package("pyarrow")
    try:
        yield
    except (arrow.ArrowException, OSError, KeyError, UnicodeDecodeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} is no readable Parquet file: {reason}") from error
