r"""Record format `tfrecord`: TFRecord shards with both published index layouts, without TensorFlow.

Layout of a set called N in an output folder R, chosen so that both published readers find everything:

    R/N/N-00000.tfrecord ...   Examples with the feature `image`, up to 500,000 a shard
    R/N/N.index                `N/<label>/<sample>.jpg \t shard \t byte offset`
                               ADMIS (METHOD TF-Synthetic, DATA_ROOT = R/N) takes the folder as the label
    R/N.txt                    `N \t shard \t byte offset \t label`
                               TFace (DATA_ROOT = INDEX_ROOT = R) reads records only when `TFR` is in N
    R/labels.txt               which label is which identity; written by `facesyn pack`
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from facesyn_cli.artifacts.atomic_files import as_user_error, write_atomically
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.record_set import LABELS, RecordFormat, RecordSet
from facesyn_cli.data.append_file import AppendFile
from facesyn_cli.data.left_out import LeftOut
from facesyn_cli.data.record_files import visible_files
from facesyn_cli.data.record_images import fit_jpeg
from facesyn_cli.data.record_index import (
    RecordIndex,
    escape_name,
    find_index,
    index_samples,
    looks_like_index,
    read_index,
    read_labels,
)
from facesyn_cli.data.tfrecord_framing import decode_example, encode_example, frame, read_frame
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_PLACE = np.dtype([("shard", "<i4"), ("offset", "<i8")])
_PLACE_BYTES = struct.Struct("<iq")    # one such row


class TfrecordConfig(PluginConfig):
    """Settings of `tfrecord`."""

    records_per_shard: int = Field(500_000, gt=0)                 # as published
    quality: int = Field(95, ge=1, le=100)                        # of images that are no fitting JPEG yet
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"     # of their color; OpenCV's default

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
def build_tfrecord(cfg: TfrecordConfig) -> RecordFormat:
    """Build the format."""
    return TfrecordFormat(cfg)


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
        reader = TfrecordReader(index, header is not None)
        return RecordSet(path, index.labels, index.identities, digest, reader, left_out.counts)


class TfrecordReader:
    """Random access to the images of a TFRecord set; handles are opened per process.

    Args:
        index: Where each record lies.
        is_escaped: The sample names in the index are ours, with odd characters escaped.
    """

    def __init__(self, index: RecordIndex, is_escaped: bool) -> None:
        self.index, self.is_escaped = index, is_escaped
        self._lock = threading.Lock()
        self._process, self._descriptors = 0, {}

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UserError: Naming the file and the offset: damaged, truncated, or no Example with an image.
        """
        number, offset = int(self.index.file_of[index]), int(self.index.offsets[index])
        path = self.index.files[number]
        data = read_frame(self._descriptor(number), offset, path)
        try:
            return decode_example(data)["image"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}, record at byte {offset}: no Example with the feature `image`: {error}") from error

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record."""
        return index_samples(self.index, self.is_escaped)

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if self._process != os.getpid():
                self._process, self._descriptors = os.getpid(), {}
            if number not in self._descriptors:
                path = self.index.files[number]
                try:
                    self._descriptors[number] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                except OSError as error:
                    raise UserError(f"cannot open {path}: {error.strerror}") from error
            return self._descriptors[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "is_escaped": self.is_escaped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __del__(self) -> None:
        if self.__dict__.get("_process") == os.getpid():
            for descriptor in self._descriptors.values():
                os.close(descriptor)


class TfrecordWriter:
    """Writes shards one after the other; a shard gets its name when it is whole.

    Killed at any moment, the set is restored from the state of the last commit: the shard under work is
    cut back to its committed size.
    """

    def __init__(self, folder: Path, name: str, scratch: Path, records_per_shard: int, state: dict[str, Any]) -> None:
        self.folder, self.name, self.records_per_shard = folder, name, records_per_shard
        self.num_records = int(state.get("records", 0))
        self._places = AppendFile(scratch / "places", self.num_records * _PLACE.itemsize)
        self._shard = int(state.get("shard", 0))
        self._file = self._open_shard(int(state.get("bytes", 0)))

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image."""
        if self.num_records and self.num_records == (self._shard + 1) * self.records_per_shard:
            self._close_shard()
            self._shard += 1
            self._file = self._open_shard(0)
        offset = self._file.write(frame(encode_example(data)))
        self._places.write(_PLACE_BYTES.pack(self._shard, offset))
        self.num_records += 1

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to restore from."""
        self._places.sync()
        return {"records": self.num_records, "shard": self._shard, "bytes": self._file.sync()}

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Give the last shard its name and write both index files.

        Args:
            labels: (N,) label of every record.
            samples: Sample name of every record.
        """
        self._close_shard()
        self._places.close()
        places = np.fromfile(self._places.path, dtype=_PLACE)
        name = self.name
        with (
            write_atomically(self.folder / name / f"{name}.index") as admis,
            write_atomically(self.folder / f"{name}.txt") as tface,
            open(admis, "w", encoding="utf-8", newline="\n") as admis_file,
            open(tface, "w", encoding="utf-8", newline="\n") as tface_file,
        ):
            for (shard, offset), label, sample in zip(places, labels, samples, strict=True):
                admis_file.write(f"{name}/{label}/{escape_name(sample)}.jpg\t{shard}\t{offset}\n")
                tface_file.write(f"{name}\t{shard}\t{offset}\t{label}\n")

    def close(self) -> None:
        """Close the open files."""
        self._file.close()
        self._places.close()

    def _open_shard(self, size: int) -> AppendFile:
        if self._path().exists():  # killed after the rename, before the next commit
            _rename(self._path(), self._unfinished())
        return AppendFile(self._unfinished(), size)

    def _close_shard(self) -> None:
        self._file.sync()
        self._file.close()
        _rename(self._unfinished(), self._path())

    def _path(self) -> Path:
        return self.folder / self.name / f"{self.name}-{self._shard:05d}.tfrecord"

    def _unfinished(self) -> Path:
        return self._path().with_name(f".{self._path().name}.part")


def _unnamed_files(index: RecordIndex) -> list[Path]:
    """Return the files that are called like the shards of an index, lie beside them and are not in it."""
    stems = {(file.parent, file.name.rpartition("-")[0]) for file in index.files}
    beside = [file for folder, stem in stems for file in visible_files(folder, ".tfrecord")
              if file.name.rpartition("-")[0] == stem]
    return sorted(set(beside) - set(index.files))


def _rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        raise as_user_error(error, new) from error
