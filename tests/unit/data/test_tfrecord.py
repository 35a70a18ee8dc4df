"""TFRecord bytes against the golden ones, against an independent reader, and against damage."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.data.record_files import RecordFiles
from facesyn_cli.data.tfrecord_framing import decode_example, encode_example, frame, masked_crc, read_frame
from facesyn_cli.errors import UserError

GOLDEN_EXAMPLE = "0a120a100a05696d61676512070a050a03616263"
GOLDEN_RECORD = "14000000000000005e3d29150a120a100a05696d61676512070a050a036162638bda8157"


def crc32c_by_hand(data: bytes) -> int:
    """The checksum bit by bit, as its polynomial (reflected 0x82f63b78) defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_golden_bytes():
    assert encode_example(b"abc").hex() == GOLDEN_EXAMPLE
    assert frame(encode_example(b"abc")).hex() == GOLDEN_RECORD


def test_masked_crc_is_the_rotated_checksum():
    assert crc32c_by_hand(b"123456789") == 0xE3069283
    for data in (b"", b"123456789", bytes(range(256))):
        crc = crc32c_by_hand(data)
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert masked_crc(data) == (rotated + 0xA282EAD8) % 2**32


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20000, 2_100_000])
def test_example_round_trip(size: int):
    image = np.random.RandomState(size).bytes(size)
    assert decode_example(encode_example(image)) == {"image": image}
    both = decode_example(encode_example(image, label=-5))
    assert both == {"image": image, "label": struct.pack("<i", -5)}


def test_features_of_other_kinds_and_orders_are_passed_over():
    ints = b"\x0a\x0d\x0a\x05count\x12\x04\x1a\x02\x08\x07"      # map entry count: int64_list [7]
    image = b"\x0a\x0e\x12\x05\x0a\x03\x0a\x01x\x0a\x05image"    # value before key
    content = ints + image
    assert decode_example(b"\x0a" + bytes([len(content)]) + content) == {"image": b"x"}


@pytest.mark.parametrize(
    "data", [b"\x0a\x7f", b"\x0a\x04\x0a\x02\x0a\x7f", b"\x07", b"\xff" * 12, b"\x09\x00", b"\x0a"]
)
def test_no_message(data: bytes):
    with pytest.raises(ValueError):
        decode_example(data)


@pytest.fixture
def two_records(tmp_path: Path) -> tuple[Path, int]:
    """A file of two records and the offset of the second."""
    path = tmp_path / "faces-00000.tfrecord"
    path.write_bytes(frame(b"first") + frame(b"second one"))
    return path, len(frame(b"first"))


def read(path: Path, offset: int) -> bytes:
    return read_frame(RecordFiles([path]), 0, offset)


def test_random_access(two_records: tuple[Path, int]):
    path, second = two_records
    assert second == 5 + 16
    assert read(path, second) == b"second one"
    assert read(path, 0) == b"first"


def test_every_flipped_bit_is_noticed(two_records: tuple[Path, int]):
    path, second = two_records
    whole = path.read_bytes()
    for place in range(second, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"faces-00000.tfrecord, record at byte {second}:"):
            read(path, second)
        assert read(path, 0) == b"first"


def test_every_truncation_is_noticed(two_records: tuple[Path, int]):
    path, second = two_records
    whole = path.read_bytes()
    for size in range(second, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"record at byte {second}: .*ends at byte {size}"):
            read(path, second)


def test_a_huge_length_is_refused_before_memory_is_asked_for(tmp_path: Path):
    path = tmp_path / "huge.tfrecord"
    length = struct.pack("<Q", 2**62)
    path.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"x" * 100)
    with pytest.raises(UserError, match=f"{2**62} bytes are announced but the file ends at byte 112"):
        read(path, 0)


def test_reading_in_the_middle_of_a_record_is_refused(two_records: tuple[Path, int]):
    path, second = two_records
    with pytest.raises(UserError, match="start of a record"):
        read(path, second + 3)


def test_reader_survives_pickling_and_forking(tmp_path: Path):
    from facesyn_cli.artifacts.record_set import RecordSet

    (tmp_path / "a-00000.tfrecord").write_bytes(frame(encode_example(b"one")) + frame(encode_example(b"two")))
    second = len(frame(encode_example(b"one")))
    (tmp_path / "a.index").write_text(f"x/0/a.jpg\t0\t0\nx/1/b.jpg\t0\t{second}\n")
    records = RecordSet.open(tmp_path)
    assert records.read(1) == b"two"
    again = pickle.loads(pickle.dumps(records))
    assert [again.read(0), again.read(1)] == [b"one", b"two"]
    child = os.fork()
    if child == 0:
        os._exit(0 if [records.read(1), records.read(0)] == [b"two", b"one"] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_record_without_an_image_names_file_and_offset(tmp_path: Path):
    from facesyn_cli.artifacts.record_set import RecordSet

    (tmp_path / "a-00000.tfrecord").write_bytes(frame(b"\x0a\x00"))
    (tmp_path / "a.index").write_text("x/0/a.jpg\t0\t0\n")
    with pytest.raises(UserError, match=r"a-00000.tfrecord, record at byte 0: no Example with the feature `image`"):
        RecordSet.open(tmp_path).read(0)
