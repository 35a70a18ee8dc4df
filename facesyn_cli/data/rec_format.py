r"""Record format `rec`: MXNet RecordIO as InsightFace trains from it, read and written without MXNet.

Layout of a set called N in an output folder R; R/N is what arcface_torch takes as `rec`:

    R/N/train.rec     record 0: flag 2, labels (first identity record, end of all records)
                      records 1, 2, ...: one image each, header label = integer label
                      identity records: flag 2, labels (first image, end of the images) of one identity;
                      left out where the images of an identity do not follow each other (shuffle)
    R/N/train.idx     `record \t byte offset`
    R/N/train.lst     `record \t label \t identity/sample.suffix`
    R/N/property      `number of identities,height,width`
    R/labels.txt      which label is which identity; written by `facesyn pack`

Read besides, with or without the .idx: sets without a record 0 of that kind, and the DCFace layout, where
`list.txt` (`record \t identity/image`) says whose face it is and all labels are 0.
Labels are 32-bit floats, which are exact up to 2^24: larger sets are refused.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facesyn_cli.artifacts.atomic_files import as_user_error, write_atomically, write_text
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.console import log
from facesyn_cli.data.append_file import AppendFile
from facesyn_cli.data.growing_file import GrowingFile
from facesyn_cli.data.left_out import LeftOut
from facesyn_cli.data.passthrough import PassthroughConfig, fit_passthrough
from facesyn_cli.data.rec_index import SampleNames, listed_identities, record_places
from facesyn_cli.data.record_files import RecordFiles, content_digest, first_bytes, visible_files
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_index import escape_name
from facesyn_cli.data.record_names import (
    MAX_LABEL,
    dense_labels,
    escape_folder,
    our_labels,
)
from facesyn_cli.data.recordio import (
    HEADER,
    MAGIC_BYTES,
    count_unlisted,
    frame_record,
    read_heads,
    read_record,
    split_payload,
)
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

STEM = "train"
MAX_RECORDS = 2**24                    # the last integer before 32-bit floats leave some out
_LABEL_PLACE = 8 + 4                   # of the header's label, from the start of a record
_FIRST_LABELS_PLACE = 8 + HEADER.size  # of the labels after the header


class RecConfig(PassthroughConfig):
    """Settings of `rec`."""


@register("record_format", "rec", Card("MXNet RecordIO as InsightFace and DCFace use it: .rec, .idx, .lst, property.",
                                       "InsightFace; DCFace"))
def build_rec(cfg: RecConfig) -> RecordFormat:
    """Build the format."""
    return RecFormat(cfg)


class RecFormat:
    """Reads and writes RecordIO sets; see the module docstring."""

    kind = "RecordSet"

    def __init__(self, cfg: RecConfig) -> None:
        self.cfg = cfg

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image untouched when it has the right size, else resized."""
        return fit_passthrough(data, size, self.cfg.quality)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> RecWriter:
        """Open a set for writing at the state of its last commit."""
        return RecWriter(folder / name, scratch, state)

    def recognizes(self, path: Path) -> bool:
        """True for a .rec file, the .idx beside one, and a folder that holds one."""
        files = [path.with_suffix(".rec") if path.suffix == ".idx" else path] if path.is_file() else _rec_files(path)
        return any(first_bytes(file, 4) == MAGIC_BYTES for file in files)

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, a folder with one .rec file in it, or such a file.

        Raises:
            UserError: A file is missing, damaged, or the files do not fit each other.
        """
        if header is not None:
            file = path / str(header.extra.get("name")) / f"{STEM}.rec"
        elif path.is_file():
            file = path.with_suffix(".rec")
        else:
            files = _rec_files(path)
            if len(files) != 1:
                found = ", ".join(p.name for p in files) or "none"
                raise UserError(f"{path}: one .rec file was expected, found {found}; name the file itself")
            file = files[0]
        if first_bytes(file, 4) != MAGIC_BYTES:
            raise UserError(f"{file} is no RecordIO file: it does not start with {MAGIC_BYTES.hex()}")
        keys, offsets = record_places(file)
        left_out = LeftOut()
        keys, offsets, values = _images(file, keys, offsets, left_out)
        left_out.say(file, len(keys))
        names = SampleNames(file, header is not None)
        if header is not None:
            labels, identities = our_labels(values, path)
        elif names.is_dcface and len(np.unique(values)) == 1:
            labels, identities = listed_identities(names.path, keys)
        else:
            labels, identities = dense_labels(values)
            if len(identities) == 1 and len(values) > 1:
                log.warning(f"{file}: all {len(values)} images have the label {identities[0]}; sets of DCFace need "
                            "their list.txt beside the .rec file, which says whose face is whose")
        digest = header.digest if header else content_digest([file], offsets, labels)
        reader = RecReader(RecordFiles([file]), keys, offsets, names)
        return RecordSet(path, labels, identities, digest, reader, left_out.counts)


@dataclass(frozen=True)
class RecReader:
    """Images of a .rec file.

    Args:
        files: The file.
        keys: (N,) int64, number of each record in the .idx.
        offsets: (N,) int64, where it starts.
        names: Where sample names come from.
    """

    files: RecordFiles
    keys: np.ndarray
    offsets: np.ndarray
    names: SampleNames

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UserError: The record is damaged or its file is gone.
        """
        try:
            return split_payload(read_record(self.files, 0, int(self.offsets[index])))[2]
        except ValueError as error:
            raise UserError(f"{self.files.paths[0]}, record at byte {self.offsets[index]}: {error}") from error

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record: its name in a list beside the file, else its number."""
        names = self.names.by_key()
        return (names.get(key, str(key)) for key in self.keys.tolist())


class RecWriter:
    """Writes one .rec file; labels are filled in at the end, when they are known."""

    def __init__(self, folder: Path, scratch: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.num_records = int(state.get("records", 0))
        self._places = AppendFile(scratch / "places", 8 * self.num_records)
        self._names = AppendFile(scratch / "names", int(state.get("names", 0)))
        self._file = GrowingFile(folder / f"{STEM}.rec", int(state.get("bytes", 0)))
        if not self._file.size:
            self._file.write(frame_record(HEADER.pack(2, 0.0, 0, 0) + struct.pack("<2f", 0, 0)))

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image.

        Raises:
            UserError: No space left, or more records than float labels can count.
        """
        if self.num_records + 2 >= MAX_RECORDS:
            raise UserError(f"{self.folder}: a rec set holds at most {MAX_RECORDS - 2} images, because its labels are "
                            "32-bit floats; choose another format with --to")
        key = self.num_records + 1
        offset = self._file.write(frame_record(HEADER.pack(0, 0.0, key, 0) + data))
        self._places.write(offset.to_bytes(8, "little"))
        self._names.write(f"{escape_folder(identity)}/{escape_name(sample)}{suffix_of(data)}\n".encode())
        self.num_records = key

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to restore from."""
        return {
            "records": self._places.sync() // 8, "names": self._names.sync(), "bytes": self._file.sync(),
        }

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Fill in the labels, append the identity records and write the files beside.

        Args:
            labels: (N,) label of every record.
            samples: Not needed: the names are known since `append`.
        """
        self._places.close()
        self._names.close()
        offsets = np.fromfile(self._places.path, "<i8")
        num_images, num_identities = len(offsets), int(labels.max()) + 1
        is_grouped = bool((np.diff(labels) >= 0).all()) and num_images + num_identities + 1 <= MAX_RECORDS
        end = num_images + 1
        ends = list(offsets)
        if is_grouped:
            starts = np.searchsorted(labels, np.arange(num_identities + 1)) + 1
            for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
                payload = HEADER.pack(2, 0.0, end, 0) + struct.pack("<2f", first, last)
                ends.append(self._file.write(frame_record(payload)))
                end += 1
        self._file.sync()
        _fill_in(self._file.path, offsets, labels, (num_images + 1, end))
        self._file.publish()
        with (
            write_atomically(self.folder / f"{STEM}.idx") as idx,
            write_atomically(self.folder / f"{STEM}.lst") as lst,
            open(idx, "w", encoding="ascii", newline="\n") as idx_file,
            open(lst, "w", encoding="utf-8", newline="\n") as lst_file,
            open(self._names.path, encoding="utf-8", newline="\n") as names,
        ):
            idx_file.write("0\t0\n")
            idx_file.writelines(f"{key}\t{offset}\n" for key, offset in enumerate(ends, 1))
            for key, (label, name) in enumerate(zip(labels, names, strict=True), 1):
                lst_file.write(f"{key}\t{label}\t{name}")
        width, height = _size_of_first(self.folder / f"{STEM}.rec", int(offsets[0]))
        write_text(self.folder / "property", f"{num_identities},{height},{width}\n")

    def close(self) -> None:
        """Close the open files."""
        for file in (self._file, self._places, self._names):
            file.close()


def _rec_files(folder: Path) -> list[Path]:
    return visible_files(folder, ".rec") if folder.is_dir() else []


def _images(
    file: Path, keys: np.ndarray, offsets: np.ndarray, left_out: LeftOut
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, offsets and integer labels of the records that are images; others than of identities are counted."""
    heads = read_heads(file, offsets)
    is_image = heads.has_image.copy()
    if unlisted := count_unlisted(file, offsets, heads.ends):
        left_out.add(f"records that {file.with_suffix('.idx').name} does not list", file.name, unlisted)
    empty = np.flatnonzero(~heads.has_image & (heads.flags == 0))
    if len(empty):
        left_out.add("records without an image", f"record {keys[empty[0]]}", len(empty))
    if keys[0] == 0 and heads.flags[0] > 0 and not is_image[0]:
        end = float(heads.labels[0])
        if not (1 <= end <= 2**31) or (end <= MAX_RECORDS and int(is_image[keys < end].sum()) != int(end) - 1):
            raise UserError(f"{file}: record 0 announces images up to record {end - 1:g}, but {int(is_image.sum())} "
                            "were found; is the file truncated, or its .idx of another?")
        if end <= MAX_RECORDS:
            behind = np.flatnonzero(is_image & (keys >= end))
            if len(behind):
                left_out.add("images that record 0 does not announce", f"record {keys[behind[0]]}", len(behind))
            is_image &= keys < end
    values = heads.labels[is_image]
    if not len(values):
        raise UserError(f"{file} holds no images")
    with np.errstate(invalid="ignore"):
        is_wrong = ~((values >= 0) & (values < MAX_LABEL) & (values == np.floor(values)))
    if is_wrong.any():
        row = int(is_wrong.argmax())
        key = keys[is_image][row]
        raise UserError(f"{file}, record {key}: a whole number was expected as label, found {values[row]:g}")
    return keys[is_image], offsets[is_image], values.astype(np.int64)


def _fill_in(path: Path, offsets: np.ndarray, labels: np.ndarray, ends: tuple[int, int]) -> None:
    """Write the labels into the records that were written without them."""
    try:
        with open(path, "r+b", buffering=0) as file:
            descriptor = file.fileno()
            os.pwrite(descriptor, struct.pack("<2f", *ends), _FIRST_LABELS_PLACE)
            for offset, label in zip(offsets.tolist(), labels.tolist(), strict=True):
                os.pwrite(descriptor, struct.pack("<f", label), offset + _LABEL_PLACE)
            os.fsync(descriptor)
    except OSError as error:
        raise as_user_error(error, path) from error


def _size_of_first(file: Path, offset: int) -> tuple[int, int]:
    data = split_payload(read_record(RecordFiles([file]), 0, offset))[2]
    with Image.open(io.BytesIO(data)) as image:
        return image.size
