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

from facesyn_cli.errors import UserError

HEADER_BYTES = 12     # length and its checksum
FRAME_BYTES = 16      # what a record takes beyond its data


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
        head = os.pread(descriptor, HEADER_BYTES, offset)
        size = os.fstat(descriptor).st_size
        if len(head) < HEADER_BYTES:
            raise UserError(f"{where}: the file ends at byte {size}, inside the record; is it truncated?")
        length, crc = struct.unpack("<QI", head)
        if masked_crc(head[:8]) != crc:
            raise UserError(f"{where}: wrong checksum of the length; is this the start of a record?")
        if length > size - offset - FRAME_BYTES:
            raise UserError(f"{where}: {length} bytes are announced but the file ends at byte {size}")
        body = os.pread(descriptor, length + 4, offset + HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{where}: cannot read: {error.strerror}") from error
    if len(body) != length + 4 or masked_crc(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
        raise UserError(f"{where}: wrong checksum of the data; the file is damaged")
    return body[:-4]


def encode_example(image: bytes, label: int | None = None) -> bytes:
    """Return a serialised Example with the feature `image`, and `label` when given."""
    features = [_map_entry(b"image", image)]
    if label is not None:
        features.append(_map_entry(b"label", struct.pack("<i", label)))
    return _message(1, b"".join(features))


def decode_example(data: bytes) -> dict[str, bytes]:
    """Return the first value of every byte-list feature of a serialised Example; others are left out.

    Raises:
        ValueError: The bytes are not a protocol-buffer message of that shape.
    """
    features = {}
    for block in _submessages(data, 1):
        for entry in _submessages(block, 1):
            key = b"".join(_submessages(entry, 1)[-1:])
            for feature in _submessages(entry, 2)[-1:]:
                values = [value for values in _submessages(feature, 1) for value in _submessages(values, 1)]
                if values:
                    features[key.decode("utf-8")] = values[0]
    return features


def _message(number: int, content: bytes) -> bytes:
    """One length-delimited field."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _map_entry(key: bytes, value: bytes) -> bytes:
    return _message(1, _message(1, key) + _message(2, _message(1, _message(1, value))))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _submessages(data: bytes, number: int) -> list[bytes]:
    """Return the contents of all length-delimited fields with this number; skip every other field."""
    found, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire = tag & 7
        if wire == 2:
            length, at = _read_varint(data, at)
            if length > len(data) - at:
                raise ValueError(f"a field of {length} bytes reaches beyond the message")
            if tag >> 3 == number:
                found.append(data[at : at + length])
            at += length
        elif wire == 0:
            _, at = _read_varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} does not exist in such messages")
    if at > len(data):
        raise ValueError("the message ends inside a field")
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the message ends inside a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number has more than 10 bytes")
