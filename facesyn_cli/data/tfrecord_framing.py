"""TFRecord bytes without TensorFlow: framing with checksums, and the kind of Example that face sets use.

A record is

    u64 length | u32 masked_crc(length bytes) | data | u32 masked_crc(data)        all little-endian
    masked_crc(b) = rotate_right(crc32c(b), 15) + 0xa282ead8   (mod 2^32)

and its data is a protocol-buffer message `Example { Features features = 1 }`, with
`Features { map<string, Feature> feature = 1 }` and `Feature { BytesList bytes_list = 1 }`,
`BytesList { repeated bytes value = 1 }`. Face sets hold `image` (an encoded image) and sometimes `label`
(a 4-byte little-endian integer).
"""

from __future__ import annotations

import struct

import google_crc32c

from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.data.protobuf import Place, length_delimited, read_fields
from facesyn_cli.data.record_files import RecordFiles
from facesyn_cli.errors import UserError

HEADER_BYTES = 12     # length and its checksum
FRAME_BYTES = 16      # what a record takes beyond its data
_FIRST_READ = 1 << 14  # bytes: most face images at once


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of some bytes, 0..2^32-1."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """Return `data` as a TFRecord: 16 bytes longer."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def read_frame(files: RecordFiles, number: int, offset: int) -> bytes:
    """Return the data of the record at a byte offset of a file, with both checksums verified.

    Raises:
        UserError: The file ends inside the record, a checksum is wrong, or the file cannot be read.
    """
    where = f"{files.paths[number]}, record at byte {offset}"
    start = files.read(number, offset, _FIRST_READ)
    if len(start) < HEADER_BYTES:
        size = offset + len(start)
        raise UserError(f"{where}: the file ends at byte {size}, inside the record; is it truncated?")
    length, crc = struct.unpack_from("<QI", start)
    if masked_crc(start[:8]) != crc:
        raise UserError(f"{where}: wrong checksum of the length; is this the start of a record?")
    end = length + FRAME_BYTES
    if end > len(start):
        size = files.size(number)
        if end > size - offset:
            raise UserError(f"{where}: {length} bytes are announced but the file ends at byte {size}")
        if length > MAX_FILE_BYTES:
            raise UserError(f"{where}: {length} bytes; images of at most {MAX_FILE_BYTES} are read")
        start += files.read(number, offset + len(start), end - len(start))
    data = start[HEADER_BYTES : HEADER_BYTES + length]
    if len(start) < end or masked_crc(data) != struct.unpack_from("<I", start, end - 4)[0]:
        raise UserError(f"{where}: wrong checksum of the data; the file is damaged")
    return data


def encode_example(image: bytes, label: int | None = None) -> bytes:
    """Return a serialized Example with the feature `image`, and `label` when given."""
    parts = [_entry_head(b"image", len(image)), image]
    if label is not None:
        parts += [_entry_head(b"label", 4), struct.pack("<i", label)]
    return b"".join((length_delimited(1, sum(map(len, parts))), *parts))


def decode_example(data: bytes) -> dict[str, bytes]:
    """Return the first value of every byte-list feature of a serialized Example; others are left out.

    Raises:
        ValueError: The bytes are not a protocol-buffer message of that shape.
    """
    features = {}
    for entry in _inside(data, _inside(data, [(0, len(data))], 1), 1):
        keys = _inside(data, [entry], 1)
        values = _inside(data, _inside(data, _inside(data, [entry], 2)[-1:], 1), 1)
        if values:
            key = data[slice(*keys[-1])] if keys else b""
            features[key.decode("utf-8")] = data[slice(*values[0])]
    return features


def read_image(files: RecordFiles, number: int, offset: int) -> bytes:
    """Return the image of the record at a byte offset of a file.

    Raises:
        UserError: As `read_frame`.
        ValueError: The record is no Example with an image.
    """
    data = read_frame(files, number, offset)
    try:
        return decode_example(data)["image"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"no Example with the feature `image`: {error}") from error


def _entry_head(key: bytes, size: int) -> bytes:
    """Return what precedes a value of `size` bytes: map entry, key, feature and list, built from the inside out."""
    head = length_delimited(1, size)                                                 # BytesList.value
    head = length_delimited(1, len(head) + size) + head                              # Feature.bytes_list
    head = length_delimited(1, len(key)) + key + length_delimited(2, len(head) + size) + head
    return length_delimited(1, len(head) + size) + head                              # Features.feature


def _inside(data: bytes, places: list[Place], number: int) -> list[Place]:
    """Return where the length-delimited fields with a number lie in some messages."""
    return [value for place in places for found, value in read_fields(data, place)
            if found == number and isinstance(value, tuple)]
