"""MXNet RecordIO bytes without MXNet.

A record is one part, or several where its payload holds the magic number at a multiple of 4 bytes:

    u32 magic 0xced7230a | u32 cflag << 29 | length | length bytes | zeros up to a multiple of 4
    cflag 0: whole record; 1, 2, 3: first, middle, last part; the magic between the parts is left out

all little-endian. The payload of a face record starts with a header of 24 bytes,

    u32 flag | f32 label | u64 id | u64 id2 | flag times f32 label | encoded image

where the labels after the header, if there are any, replace the one in it.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.data.record_files import RecordFiles
from facesyn_cli.errors import UserError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEADER = struct.Struct("<IfQQ")
_PART = struct.Struct("<II")
_LENGTH_BITS = 29
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_FIRST_READ = 1 << 14    # bytes: most face images at once


def frame_record(payload: bytes) -> bytes:
    """Return a payload as a record of one or more parts."""
    parts, start = [], 0
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            parts.append(payload[start:at])
            start = at + 4
        at = payload.find(MAGIC_BYTES, at + (4 if at % 4 == 0 else 1))
    parts.append(payload[start:])
    out = []
    for number, part in enumerate(parts):
        cflag = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        out += [_PART.pack(MAGIC, cflag << _LENGTH_BITS | len(part)), part, bytes(-len(part) % 4)]
    return b"".join(out)


def read_record(files: RecordFiles, number: int, offset: int) -> bytes:
    """Return the payload of the record that starts at byte `offset` of a file, its parts joined.

    Raises:
        UserError: Naming the file and the offset: no record starts here, or the file ends inside it.
    """
    where = f"{files.paths[number]}, record at byte {offset}"
    parts, total, at = [], 0, offset
    while True:
        start = files.read(number, at, _FIRST_READ)
        if len(start) < _PART.size:
            raise UserError(f"{where}: the file ends at byte {at + len(start)}, inside the record; is it truncated?")
        is_record, cflag, length = _part_head(start)
        if not is_record or cflag not in ((2, 3) if parts else (0, 1)):
            raise UserError(f"{where}: no RecordIO record; is this the start of one, or is the file damaged?")
        total += length + 4
        end = _PART.size + length
        if total > MAX_FILE_BYTES:
            raise UserError(f"{where}: more than {MAX_FILE_BYTES} bytes; images of at most that size are read")
        if end > len(start):
            size = files.size(number)
            if at + end > size:
                raise UserError(f"{where}: {length} bytes are announced but the file ends at byte {size}")
            start += files.read(number, at + len(start), end - len(start))
        parts.append(start[_PART.size : end])
        if cflag in (0, 3):
            return MAGIC_BYTES.join(parts)
        at += _padded(length)


def read_image(files: RecordFiles, number: int, offset: int) -> bytes:
    """Return the image of the record that starts at byte `offset` of a file.

    Raises:
        UserError: As `read_record`.
        ValueError: The record is shorter than its header announces.
    """
    return split_payload(read_record(files, number, offset))[2]


def split_payload(payload: bytes) -> tuple[int, np.ndarray, bytes]:
    """Return (flag, labels, encoded image) of a payload; there is one label when flag is 0.

    Raises:
        ValueError: It is shorter than its header announces.
    """
    if len(payload) < HEADER.size:
        raise ValueError(f"{len(payload)} bytes are shorter than the header of {HEADER.size}")
    flag, label, _, _ = HEADER.unpack_from(payload)
    end = HEADER.size + 4 * flag
    if end > len(payload):
        raise ValueError(f"{flag} labels are announced in {len(payload)} bytes")
    labels = np.frombuffer(payload, "<f4", flag, HEADER.size) if flag else np.array([label], np.float32)
    return flag, labels, payload[end:]


@dataclass(frozen=True)
class RecordHeads:
    """Fields of the headers of N records.

    Args:
        flags: (N,) uint32.
        labels: (N,) float32, the first label of each.
        has_image: (N,) bool, whether anything follows the labels.
        ends: (N,) int64, byte after the record and its padding; of a record in several parts, after the first one.
    """

    flags: np.ndarray
    labels: np.ndarray
    has_image: np.ndarray
    ends: np.ndarray


def read_heads(path: Path, offsets: np.ndarray) -> RecordHeads:
    """Read the headers of many records at once, and check that each starts and ends inside the file.

    Args:
        path: The record file.
        offsets: (N,) int64, where the records start.

    Raises:
        UserError: Naming the first offset that is wrong.
    """
    files = RecordFiles([path])
    size = files.size(0)

    def refuse(is_wrong: np.ndarray, why: str) -> None:
        if is_wrong.any():
            raise UserError(f"{path}, record at byte {offsets[is_wrong.argmax()]}: {why}; is the file damaged, or its "
                            "index of another?")

    refuse(np.full(len(offsets), size < _PART.size + HEADER.size), "the file ends inside it")
    refuse((offsets % 4 != 0) | (offsets < 0) | (offsets + _PART.size > size), "no record starts here")
    words = np.memmap(path, "<u4", "r", shape=(size // 4,))
    places = offsets // 4
    heads, lengths = words[places + 1] >> _LENGTH_BITS, (words[places + 1] & _LENGTH_MASK).astype(np.int64)
    refuse((words[places] != MAGIC) | (heads > 1), "no record starts here")
    refuse(offsets + _PART.size + lengths > size, f"the file ends at byte {size}, inside it")
    is_whole = heads == 0
    refuse(is_whole & (lengths < HEADER.size), "it is shorter than an image header")
    places = np.where(is_whole, places, 0)
    flags = words[places + 2]
    ends_of_labels = HEADER.size + 4 * flags.astype(np.int64)
    refuse(is_whole & (ends_of_labels > lengths), "it announces more labels than it holds")
    # The labels after the header replace the one in it; the payload starts two words after the record.
    labels = words[np.where(is_whole & (flags > 0), places + 2 + HEADER.size // 4, places + 3)].view(np.float32)
    has_image = lengths > ends_of_labels
    for row in np.flatnonzero(~is_whole):
        try:
            flag, several, image = split_payload(read_record(files, 0, int(offsets[row])))
        except ValueError as error:
            raise UserError(f"{path}, record at byte {offsets[row]}: {error}") from error
        flags[row], labels[row], has_image[row] = flag, several[0], bool(image)
    return RecordHeads(flags, labels, has_image, offsets + _padded(lengths))


def count_unlisted(path: Path, offsets: np.ndarray, ends: np.ndarray) -> int:
    """Return how many records a file has that an index of it does not list.

    Args:
        path: The record file.
        offsets: (N,) int64, where the listed records start.
        ends: (N,) int64, as in `RecordHeads`.
    """
    files = RecordFiles([path])
    order = np.argsort(offsets, kind="stable")
    starts = np.append(offsets[order], files.size(0))
    gaps = np.flatnonzero(np.append(0, ends[order]) < starts)
    count = 0
    for gap in gaps.tolist():
        at = int(ends[order[gap - 1]]) if gap else 0
        while at < starts[gap]:
            is_record, cflag, length = _part_head(files.read(0, at, _PART.size))
            if not is_record:
                break  # bytes between the records
            count += cflag in (0, 1)  # else a later part of a listed record
            at += _padded(length)
    return count


def scan_offsets(path: Path) -> np.ndarray:
    """Return (N,) int64: where each record of a file without an index starts.

    Raises:
        UserError: The file is no sequence of whole records.
    """
    files = RecordFiles([path])
    size, at, offsets, is_inside = files.size(0), 0, array("q"), False
    while at < size:
        is_record, cflag, length = _part_head(files.read(0, at, _PART.size))
        if not is_record or cflag not in ((2, 3) if is_inside else (0, 1)):
            raise UserError(f"{path}: no RecordIO record at byte {at}; is the file damaged or truncated?")
        if not is_inside:
            offsets.append(at)
        is_inside = cflag in (1, 2)
        at += _padded(length)
    if is_inside or at > size:
        raise UserError(f"{path} ends at byte {size}, inside a record; is it truncated?")
    return np.frombuffer(offsets, np.int64)


def _part_head(data: bytes) -> tuple[bool, int, int]:
    """Return whether a part of a record starts here, its cflag and its length."""
    magic, word = _PART.unpack_from(data) if len(data) >= _PART.size else (0, 0)
    return magic == MAGIC, word >> _LENGTH_BITS, word & _LENGTH_MASK


def _padded(length: Any) -> Any:
    """Return the bytes that a part with a content of this length takes; of an integer or an array."""
    return _PART.size + length + -length % 4
