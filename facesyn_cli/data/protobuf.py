"""The protocol-buffer wire format, as far as record files need it.

A message is a row of fields, each a tag `number << 3 | wire type` and a value: wire type 0 a number of variable
length (7 bits a byte, the lowest first), 1 eight bytes, 2 a length and so many bytes, 5 four bytes.
"""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Return a number that is not negative in variable length."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at byte `at`, and the first byte after it.

    Raises:
        ValueError: The data end inside the number, or it has more than 10 bytes.
    """
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
