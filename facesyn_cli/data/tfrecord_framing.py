"""TFRecord bytes without TensorFlow: framing with checksums, and the one kind of Example face sets use.

A record is

    u64 length | u32 masked_crc(length bytes) | data | u32 masked_crc(data)        all little-endian
    masked_crc(b) = rotate_right(crc32c(b), 15) + 0xa282ead8   (mod 2^32)

and its data is a protocol-buffer message `Example { Features features = 1 }`, with
`Features { map<string, Feature> feature = 1 }` and `Feature { BytesList bytes_list = 1 }`,
`BytesList { repeated bytes value = 1 }`. Face sets hold `image` (an encoded image) and sometimes `label`
(a 4-byte little-endian integer).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c

from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.data.protobuf import read_varint, varint
from facesyn_cli.errors import UserError

HEADER_BYTES = 12     # length and its checksum
FRAME_BYTES = 16      # what a record takes beyond its data
_FIRST_READ = 1 << 14  # bytes: most face images at once
_HOLDS = b"\n"        # tag of field 1, length-delimited


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of some bytes, 0..2^32-1."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Return `data` as a TFRecord: 16 bytes longer."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def read_frame(descriptor: int, offset: int, path: Path) -> bytes:
    """Return the data of the record that starts at byte `offset`, both checksums verified.

    Args:
        descriptor: Open file descriptor; its position is neither used nor moved.
        path: Name of the file for messages.

    Raises:
        UserError: The file ends inside the record, or a checksum is wrong.
    """
    where = f"{path}, record at byte {offset}"
    try:
        start = os.pread(descriptor, _FIRST_READ, offset)
        if len(start) < HEADER_BYTES:
            size = offset + len(start)
            raise UserError(f"{where}: the file ends at byte {size}, inside the record; is it truncated?")
        length, crc = struct.unpack_from("<QI", start)
        if masked_crc(start[:8]) != crc:
            raise UserError(f"{where}: wrong checksum of the length; is this the start of a record?")
        end = length + FRAME_BYTES
        if end > len(start):
            size = os.fstat(descriptor).st_size
            if end > size - offset:
                raise UserError(f"{where}: {length} bytes are announced but the file ends at byte {size}")
            if length > MAX_FILE_BYTES:
                raise UserError(f"{where}: {length} bytes; images of at most {MAX_FILE_BYTES} are read")
            start += os.pread(descriptor, end - len(start), offset + len(start))
    except OSError as error:
        raise UserError(f"{where}: cannot read: {error.strerror}") from error
    data = start[HEADER_BYTES : HEADER_BYTES + length]
    if len(start) < end or masked_crc(data) != struct.unpack_from("<I", start, end - 4)[0]:
        raise UserError(f"{where}: wrong checksum of the data; the file is damaged")
    return data


def encode_example(image: bytes, label: int | None = None) -> bytes:
    """Return a serialized Example with the feature `image`, and `label` when given."""
    parts = [_entry_head(b"image", len(image)), image]
    if label is not None:
        parts += [_entry_head(b"label", 4), struct.pack("<i", label)]
    return b"".join((_HOLDS, varint(sum(map(len, parts))), *parts))


def decode_example(data: bytes) -> dict[str, bytes]:
    """Return the first value of every byte-list feature of a serialized Example; others are left out.

    Raises:
        ValueError: The bytes are not a protocol-buffer message of that shape.
    """
    features = {}
    for block in _contents(data, (0, len(data)), 1):
        for entry in _contents(data, block, 1):
            keys = _contents(data, entry, 1)
            key = data[slice(*keys[-1])] if keys else b""
            for feature in _contents(data, entry, 2)[-1:]:
                lists = _contents(data, feature, 1)
                values = [value for values in lists for value in _contents(data, values, 1)]
                if values:
                    features[key.decode("utf-8")] = data[slice(*values[0])]
    return features


def _entry_head(key: bytes, size: int) -> bytes:
    """Return what stands before a value of so many bytes: map entry, key, feature, list; the innermost last."""
    head = _HOLDS + varint(size)                                                     # BytesList.value
    head = _HOLDS + varint(len(head) + size) + head                                  # Feature.bytes_list
    head = _HOLDS + varint(len(key)) + key + b"\x12" + varint(len(head) + size) + head
    return _HOLDS + varint(len(head) + size) + head                                  # Features.feature


def _contents(data: bytes, place: tuple[int, int], number: int) -> list[tuple[int, int]]:
    """Return where the contents of all length-delimited fields with this number lie; skip every other field.

    Args:
        data: The bytes.
        place: First byte of the message among them, and the one after its last.
        number: Of the field.
    """
    found = []
    at, end = place
    while at < end:
        tag, at = read_varint(data, at)
        wire = tag & 7
        if wire == 2:
            length, at = read_varint(data, at)
            if length > end - at:
                raise ValueError(f"a field of {length} bytes reaches beyond the message")
            if tag >> 3 == number:
                found.append((at, at + length))
            at += length
        elif wire == 0:
            _, at = read_varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} does not exist in such messages")
    if at > end:
        raise ValueError("the message ends inside a field")
    return found
