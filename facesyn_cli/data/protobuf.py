"""The protocol-buffer wire format, as far as record files need it.

A message is a sequence of fields, each a tag `number << 3 | wire type` and a value: wire type 0 an integer of variable
length (7 bits a byte, lowest first), 1 eight bytes, 2 a length and that many bytes, 5 four bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

Place = tuple[int, int]  # first byte, and the one after the last


def varint(value: int) -> bytes:
    """Return a non-negative integer in variable length."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, size: int) -> bytes:
    """Return the tag and length of a field of `size` bytes."""
    return varint(number << 3 | 2) + varint(size)


def read_fields(data: bytes | memoryview, place: Place) -> Iterator[tuple[int, int | Place]]:
    """Yield (number, value) of the fields of the message at a place in the data.

    A value is an integer, or the place of a length-delimited value; fields of four or eight bytes are skipped.

    Raises:
        ValueError: The bytes are no message.
    """
    at, end = place
    while at < end:
        tag, at = _read_varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
        elif wire == 2:
            length, at = _read_varint(data, at)
            if length > end - at:
                raise ValueError(f"a field of {length} bytes reaches beyond the message")
            yield tag >> 3, (at, at + length)
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} does not exist in such messages")
    if at > end:
        raise ValueError("the message ends inside a field")


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the integer at byte `at`, and the first byte after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than 10 bytes")
