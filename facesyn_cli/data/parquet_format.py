"""Record format `parquet`: Parquet files as Hugging Face `datasets` reads and writes them.

Layout of a set called N in an output folder R; `datasets.load_dataset("R/N")` reads it:

    R/N/data/train-00000-of-00012.parquet ...   about 500 MB each, 100 images a row group
        image   struct<bytes: binary, path: string>, feature Image
        label   int64, feature ClassLabel with the names of the identities
        schema metadata `huggingface`: {"info": {"features": {...}}}
    R/labels.txt                                which label is which identity; written by `facesyn pack`

Read are the files of a folder or of its folder `data`; when some are of a split `train`, only those. The
image column is the one whose feature is Image, or called `image`; the label column the one whose feature is
ClassLabel, or called `label`; labels may be integers or names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.data.formats_extra import formats_package
from facesyn_cli.data.left_out import LeftOut
from facesyn_cli.data.parquet_reader import MAGIC, open_parquet
from facesyn_cli.data.passthrough import PassthroughConfig, fit_passthrough
from facesyn_cli.data.record_files import content_digest, first_bytes, visible_files
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_index import escape_name
from facesyn_cli.data.record_names import dense_labels, named_labels, our_labels
from facesyn_cli.data.spool import Spool, SpooledRecord
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

_ROWS_PER_GROUP = 100         # as datasets writes images: reading one decodes its group
_GROUP_BYTES = 64 * 2**20


class ParquetConfig(PassthroughConfig):
    """Settings of `parquet`."""

    shard_bytes: int = Field(500_000_000, gt=0)   # of images per file, about; as datasets writes


@register("record_format", "parquet", Card("Parquet with image and label columns, as Hugging Face datasets reads it.",
                                           "Hugging Face datasets"))
def build_parquet(cfg: ParquetConfig) -> RecordFormat:
    """Build the format."""
    return ParquetFormat(cfg)


class ParquetFormat:
    """Reads and writes Parquet sets; see the module docstring."""

    kind = "RecordSet"

    def __init__(self, cfg: ParquetConfig) -> None:
        self.cfg = cfg

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image untouched when it has the right size, else resized."""
        return fit_passthrough(data, size, self.cfg.quality)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> ParquetWriter:
        """Open a set for writing at the state of its last commit.

        Raises:
            UserError: pyarrow is not installed.
        """
        return ParquetWriter(folder / name, scratch, self.cfg.shard_bytes, state)

    def recognizes(self, path: Path) -> bool:
        """True for a Parquet file and for a folder that holds some, itself or in `data`."""
        files = [path] if path.is_file() else _parquet_files(path)
        return bool(files) and first_bytes(files[0], 4) == MAGIC

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
        reader, values, names = open_parquet(files, is_ours=header is not None)
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
    """Spools the images, and writes file after file when the labels are known; a killed run goes on there."""

    def __init__(self, folder: Path, scratch: Path, shard_bytes: int, state: dict[str, Any]) -> None:
        self._parquet, self._arrow = formats_package("pyarrow.parquet"), formats_package("pyarrow")
        self.folder = folder
        self._spool = Spool(scratch, shard_bytes, state)
        self.append, self.commit, self.close = self._spool.append, self._spool.commit, self._spool.close

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Write the files.

        Args:
            labels: (N,) label of every record.
            samples: Not needed: the spool holds the names.
        """
        self._spool.close()
        counts = self._spool.counts
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
    if not folder.is_dir():
        return []
    files = visible_files(folder, ".parquet") or visible_files(folder / "data", ".parquet")
    return [p for p in files if p.name.startswith("train")] or files
