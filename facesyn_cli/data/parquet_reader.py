"""Images in Parquet files, by number, with flat memory.

A row group is decoded in batches; the last few batches stay. So reading in order costs one pass, and reading
at random decodes about half a row group for each image: fine for groups of 100 images, as `datasets` writes,
slow for groups of many thousands, for which a warning says what to do.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.console import log
from facesyn_cli.data.formats_extra import formats_package
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.record_index import stem_of
from facesyn_cli.data.record_names import MAX_LABEL, NameList, unescape_name
from facesyn_cli.errors import UserError

MAGIC = b"PAR1"
_BATCH_ROWS = 100
_BATCHES_KEPT = 8
_LARGE_GROUP = 20_000         # rows


@dataclass(frozen=True)
class _Columns:
    """Names of the columns, and of the classes when the labels are numbers of names."""

    image: str
    label: str
    has_paths: bool
    classes: list[str] | None


class ParquetReader:
    """Random access to the images; picklable, usable from several threads.

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
            data = self._batch(group, row // _BATCH_ROWS)[row % _BATCH_ROWS]
        if data is None:
            path = self.paths[self.groups[group, 0]]
            raise UnreadableImage(f"{path}, row group {self.groups[group, 1]}, row {row}: the image has no bytes, "
                                  "perhaps only a path to another file; images inside the file were expected")
        return data

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record."""
        return iter(self.names)

    def _forget(self) -> None:
        self._kept: OrderedDict[tuple[int, int], list[bytes | None]] = OrderedDict()
        self._files: dict[int, Any] = {}
        self._cursor: tuple[int, int, Iterator] = (-1, 0, iter(()))  # row group, its next batch, its batches

    def _batch(self, group: int, number: int) -> list[bytes | None]:
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
                    self._keep((group, following), batch)
                    following += 1
                    self._cursor = (group, following, batches)
        self._kept.move_to_end((group, number))
        return self._kept[group, number]

    def _keep(self, place: tuple[int, int], batch: Any) -> None:
        column = batch.column(0)
        self._kept[place] = (column.field("bytes") if hasattr(column, "field") else column).to_pylist()
        while len(self._kept) > _BATCHES_KEPT:
            self._kept.popitem(last=False)

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


def open_parquet(paths: list[Path], is_ours: bool) -> tuple[ParquetReader, np.ndarray, list[str] | None]:
    """Open files of one set and read their labels.

    Args:
        paths: The files.
        is_ours: Sample names are escaped as we write them.

    Returns:
        The reader, (N,) int64 labels, and the names of the labels 0, 1, ... where the set has names.

    Raises:
        UserError: Naming the file: damaged, without the columns, or with other columns than the first.
    """
    groups, values, names, names_of = [], array("q"), NameList(), {}
    counts: Counter[int] = Counter()
    columns = None
    for number, path in enumerate(paths):
        with _explained(path):
            file = _open_file(path)
            found = _columns(path, file.schema_arrow)
            if columns is not None and found != columns:
                raise UserError(f"{path} has other columns or classes than {paths[0]}")
            columns = found
            for group in range(file.metadata.num_row_groups):
                groups.append((number, group, len(values)))
                before = len(values)
                wanted = [columns.label, *([f"{columns.image}.path"] if columns.has_paths else [])]
                for batch in file.iter_batches(8192, row_groups=[group], columns=wanted, use_threads=False):
                    _add(path, batch, columns, is_ours, values, names, names_of, counts)
                if len(values) == before:
                    groups.pop()
                elif len(values) - before > _LARGE_GROUP:
                    log.warning(f"{path}: row group {group} has {len(values) - before} images; reading at random is "
                                "slow, so train on a set packed with --to tfrecord")
    if not values:
        raise UserError(f"{paths[0]} holds no images")
    known = columns.classes if columns.classes is not None else list(names_of) or None
    reader = ParquetReader(paths, columns.image, np.array(groups, np.int64), names)
    return reader, np.frombuffer(values, np.int64), known


def _add(
    path: Path, batch: Any, columns: _Columns, is_ours: bool, values: array, names: NameList,
    names_of: dict[str, int], counts: Counter[int],
) -> None:
    """Append the labels and sample names of a batch."""
    image_paths = [None] * batch.num_rows
    if columns.has_paths:
        image_paths = batch.column(columns.image).field("path").to_pylist()
    limit = MAX_LABEL if columns.classes is None else len(columns.classes)
    for label, image_path in zip(batch.column(columns.label).to_pylist(), image_paths, strict=True):
        if isinstance(label, str):
            label = names_of.setdefault(label, len(names_of))
        if not isinstance(label, int) or not 0 <= label < limit:
            raise UserError(f"{path}: the label {label!r} of row {len(values)} of the set is no known class")
        stem = stem_of(image_path or "")
        names.append((unescape_name(stem) if is_ours else stem) or str(counts[label]))
        counts[label] += 1
        values.append(label)


def _columns(path: Path, schema: Any) -> _Columns:
    features = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {name: feature["_type"] for name, feature in features.items() if "_type" in feature}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        features, kinds = {}, {}  # written by another tool: only names tell
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


class _explained:
    """Turn errors of pyarrow into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrow = formats_package("pyarrow")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (self.arrow.ArrowException, OSError, KeyError, UnicodeDecodeError, MemoryError)):
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"{self.path} is no readable Parquet file: {reason}") from error
