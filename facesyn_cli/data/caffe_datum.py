"""Caffe's `Datum`, the protocol-buffer message in which LMDB sets keep an encoded image and its label.

    int32 channels = 1, height = 2, width = 3;  bytes data = 4;  int32 label = 5;
    repeated float float_data = 6;  bool encoded = 7

Fields 1 to 3 are left out of encoded images, as Caffe's `convert_imageset --encoded` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from facesyn_cli.data.protobuf import read_varint, varint

_MAX_FIELDS = 64
_HEAD = 24              # bytes that hold a tag and a length, and more


@dataclass(frozen=True, slots=True)
class DatumPlaces:
    """Where a message keeps its image.

    Args:
        offset: First byte of the image within the message.
        size: Bytes of the image.
        label: Its label.
    """

    offset: int
    size: int
    label: int


def encode_datum(image: bytes, label: int) -> bytes:
    """Return the message of an encoded image."""
    return b"".join((b"\x22", varint(len(image)), image, b"\x28", varint(label), b"\x38\x01"))


def find_in_datum(read: Callable[[int, int], bytes], size: int) -> DatumPlaces:
    """Find image and label of a message without reading the image.

    Args:
        read: Takes a first byte and a number of bytes of the message.
        size: Bytes of the message.

    Raises:
        ValueError: Not a message of this kind, without label or image, or of raw pixels.
    """
    at, image, values = 0, None, {}
    for _ in range(_MAX_FIELDS):
        if at >= size:
            break
        head = read(at, min(_HEAD, size - at))
        tag, used = read_varint(head, 0)
        wire, number = tag & 7, tag >> 3
        if wire in (0, 2):
            value, used = read_varint(head, used)
            if wire == 0:
                values[number] = value
            else:
                if number == 4:
                    image = (at + used, value)
                used += value
        elif wire in (1, 5):
            used += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} does not exist in such messages")
        at += used
    if at != size:
        raise ValueError(f"its fields end at byte {at} of {size}")
    if image is None or 5 not in values:
        raise ValueError("it has no image or no label")
    if not values.get(7):
        raise ValueError("it holds raw pixels, an encoded image was expected")
    if values[5] >= 2**31:
        raise ValueError("its label is negative")
    return DatumPlaces(*image, values[5])
