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

Sets without such a record 0 are read, too, with or without the .idx, and the DCFace layout, where all labels are 0 and
`list.txt` (`record \t identity/image`) holds the identities. Labels are 32-bit floats, which are exact up to 2^24:
larger sets are refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facesyn_cli.artifacts.atomic_files import write_atomically, write_text
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.names import escape_folder, escape_name
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.console import log
from facesyn_cli.data.append_files import AppendFile, RecordAppender, fill_in
from facesyn_cli.data.rec_index import (
    MAX_RECORDS,
    ListedSamples,
    list_beside,
    listed_identities,
    read_labels,
    record_places,
)
from facesyn_cli.data.record_files import FileRecords, LeftOut, RecordFiles, content_digest, first_bytes, visible_files
from facesyn_cli.data.record_images import PassthroughConfig, PassthroughFormat, suffix_of
from facesyn_cli.data.record_labels import dense_labels, our_labels
from facesyn_cli.data.recordio import HEADER, MAGIC_BYTES, frame_record, read_image
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

STEM = "train"
_LABEL_PLACE = 8 + 4                   # of the header's label, from the start of a record
_FIRST_LABELS_PLACE = 8 + HEADER.size  # of the labels after the header


@register("record_format", "rec", Card("MXNet RecordIO as InsightFace and DCFace use it: .rec, .idx, .lst, property.",
                                       "InsightFace; DCFace"))
class RecFormat(PassthroughFormat):
    """Reads and writes RecordIO sets; see the module docstring."""

    def __init__(self, cfg: PassthroughConfig) -> None:
        self.cfg = cfg

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> RecWriter:
        """Open a set for writing at the state of its last commit."""
        return RecWriter(folder / name, scratch, state)

    def recognizes(self, path: Path) -> bool:
        """True for a .rec file, the .idx beside one, and a folder that holds one."""
        file = path.with_suffix(".rec") if path.suffix == ".idx" else path
        files = [file] if path.is_file() else visible_files(path, ".rec")
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
            files = visible_files(path, ".rec")
            if len(files) != 1:
                found = ", ".join(p.name for p in files) or "none"
                raise UserError(f"{path}: one .rec file was expected, found {found}; name the file itself")
            file = files[0]
        if first_bytes(file, 4) != MAGIC_BYTES:
            raise UserError(f"{file} is no RecordIO file: it does not start with {MAGIC_BYTES.hex()}")
        left_out = LeftOut()
        keys, offsets, values = read_labels(file, *record_places(file), left_out)
        left_out.say(file, len(keys))
        listed, is_dcface = list_beside(file)
        if header is not None:
            labels, identities = our_labels(values, path)
        elif is_dcface and len(np.unique(values)) == 1:
            labels, identities = listed_identities(listed, keys)
        else:
            labels, identities = dense_labels(values)
            if len(identities) == 1 and len(values) > 1:
                log.warning(f"{file}: all {len(values)} images have the label {identities[0]}; sets of DCFace need "
                            "their list.txt beside the .rec file, which says whose face is whose")
        digest = header.digest if header else content_digest([file], offsets, labels)
        samples = ListedSamples(listed, keys, header is not None)
        file_of = np.zeros(len(keys), np.int32)
        reader = FileRecords(RecordFiles([file]), file_of, offsets, samples, read_image)
        return RecordSet(path, labels, identities, digest, reader, left_out.counts)


class RecWriter:
    """Writes one .rec file; labels are filled in at the end, when they are known."""

    def __init__(self, folder: Path, scratch: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        state = dict(state)
        self._names = AppendFile(scratch / "names", int(state.pop("names", 0)))
        first = frame_record(HEADER.pack(2, 0.0, 0, 0) + struct.pack("<2f", 0, 0))
        self._records = RecordAppender(lambda _: folder / f"{STEM}.rec", scratch, state, start=first)

    def append(self, identity: str, sample: str, data: bytes) -> None:
        """Add one encoded image.

        Raises:
            UserError: No space left, or more records than float labels can count.
        """
        key = self._records.num_records + 1
        if key + 1 >= MAX_RECORDS:
            raise UserError(f"{self.folder}: a rec set holds at most {MAX_RECORDS - 2} images, because its labels are "
                            "32-bit floats; choose another format with --to")
        self._records.append(frame_record(HEADER.pack(0, 0.0, key, 0) + data))
        self._names.write(f"{escape_folder(identity)}/{escape_name(sample)}{suffix_of(data)}\n".encode())

    def commit(self) -> dict[str, Any]:
        """Flush to disk and return the state to resume from."""
        return {**self._records.commit(), "names": self._names.sync()}

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Fill in the labels, append the identity records and write the files beside."""
        self._names.close()
        num_images, num_identities = len(labels), int(labels.max()) + 1
        is_grouped = bool((np.diff(labels) >= 0).all()) and num_images + num_identities + 1 <= MAX_RECORDS
        identity_records = []
        if is_grouped:
            starts = np.searchsorted(labels, np.arange(num_identities + 1)) + 1
            for key, (first, last) in enumerate(pairwise(starts.tolist()), num_images + 1):
                identity_records.append(frame_record(HEADER.pack(2, 0.0, key, 0) + struct.pack("<2f", first, last)))
        end = self._records.end_offset
        ends = [end + size for size in accumulate(map(len, identity_records[:-1]), initial=0)] if is_grouped else []
        path = self.folder / f"{STEM}.rec"
        offsets = self._records.finish(b"".join(identity_records))["offset"].tolist()
        bounds = struct.pack("<2f", num_images + 1, num_images + 1 + len(identity_records))
        fill_in(path, [(_FIRST_LABELS_PLACE, bounds)])
        fill_in(path, ((o + _LABEL_PLACE, struct.pack("<f", label)) for o, label in zip(offsets, labels, strict=True)))
        with (
            write_atomically(self.folder / f"{STEM}.idx") as idx,
            write_atomically(self.folder / f"{STEM}.lst") as lst,
            open(idx, "w", encoding="ascii", newline="\n") as idx_file,
            open(lst, "w", encoding="utf-8", newline="\n") as lst_file,
            open(self._names.path, encoding="utf-8", newline="\n") as names,
        ):
            idx_file.write("0\t0\n")
            idx_file.writelines(f"{key}\t{offset}\n" for key, offset in enumerate([*offsets, *ends], 1))
            for key, (label, name) in enumerate(zip(labels, names, strict=True), 1):
                lst_file.write(f"{key}\t{label}\t{name}")
        with Image.open(io.BytesIO(read_image(RecordFiles([path]), 0, offsets[0]))) as image:
            width, height = image.size
        write_text(self.folder / "property", f"{num_identities},{height},{width}\n")

    def close(self) -> None:
        """Close the open files."""
        self._records.close()
        self._names.close()
