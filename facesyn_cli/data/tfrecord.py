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

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import escape_name
from facesyn_cli.artifacts.record_set import LABELS, RecordSet
from facesyn_cli.data.append_files import RecordAppender
from facesyn_cli.data.pixels import JPEG_QUALITY
from facesyn_cli.data.record_files import FileRecords, LeftOut, RecordFiles, visible_files
from facesyn_cli.data.record_images import fit_jpeg
from facesyn_cli.data.record_labels import read_labels
from facesyn_cli.data.tfrecord_framing import encode_example, frame, read_image
from facesyn_cli.data.tfrecord_index import IndexSamples, RecordIndex, find_index, looks_like_index, read_index
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class TfrecordConfig(PluginConfig):
    """Settings of `tfrecord`."""

    records_per_shard: int = Field(500_000, gt=0)                 # as published
    quality: int = Field(JPEG_QUALITY, ge=1, le=100)              # of images that are not yet a JPEG of the right size
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
