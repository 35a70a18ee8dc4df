"""RecordIO bytes against those of MXNet 1.9.1, and against damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.data.record_files import RecordFiles
from facesyn_cli.data.recordio import HEADER, frame_record, read_heads, read_record, scan_offsets, split_payload
from facesyn_cli.errors import UserError

# Written by mxnet.recordio.MXIndexedRecordIO of MXNet 1.9.1: record 0 with two labels, then four images, three
# of which hold the magic number at a multiple of four bytes, twice in a row in one of them.
MAGIC = bytes.fromhex("0a23d7ce")
IMAGES = [b"abc", b"xxxx" + MAGIC + b"yy", MAGIC + MAGIC + b"z", b"x" + MAGIC + b"q"]
GOLDEN = bytes.fromhex(
    "0a23d7ce200000000200000000000000000000000000000000000000000000000000a0400000e040"
    "0a23d7ce1b00000000000000000000000100000000000000000000000000000061626300"
    "0a23d7ce1c000020000000000000000002000000000000000000000000000000787878780a23d7ce0200006079790000"
    "0a23d7ce18000020000000000000803f030000000000000000000000000000000a23d7ce000000400a23d7ce010000607a000000"
    "0a23d7ce1e000000000000000000803f04000000000000000000000000000000780a23d7ce710000"
)
OFFSETS = [0, 40, 76, 124, 176]


@pytest.fixture
def golden_file(tmp_path: Path) -> Path:
    (tmp_path / "t.rec").write_bytes(GOLDEN)
    return tmp_path / "t.rec"


def test_written_as_mxnet_writes():
    payloads = [HEADER.pack(2, 0.0, 0, 0) + struct.pack("<2f", 5, 7)]
    payloads += [HEADER.pack(0, float(i // 3), i, 0) + data for i, data in enumerate(IMAGES, 1)]
    assert b"".join(map(frame_record, payloads)) == GOLDEN


def test_read_as_mxnet_reads(golden_file: Path):
    files = RecordFiles([golden_file])
    flag, labels, image = split_payload(read_record(files, 0, 0))
    assert (flag, labels.tolist(), image) == (2, [5.0, 7.0], b"")
    for number, offset in enumerate(OFFSETS[1:], 1):
        flag, labels, image = split_payload(read_record(files, 0, offset))
        assert (flag, labels.tolist(), image) == (0, [float(number // 3)], IMAGES[number - 1])


def test_offsets_and_headers_of_a_file_without_an_index(golden_file: Path):
    assert scan_offsets(golden_file).tolist() == OFFSETS
    heads = read_heads(golden_file, np.array(OFFSETS))
    assert heads.labels.tolist() == [5, 0, 0, 1, 1]
    assert heads.flags.tolist() == [2, 0, 0, 0, 0]
    assert heads.has_image.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("seed", range(20))
def test_any_payload_survives(tmp_path: Path, seed: int):
    """Payloads made of few words, so that the magic number stands everywhere, also where it must not matter."""
    rng = np.random.RandomState(seed)
    words = [MAGIC, b"\0\0\0\0", b"abcd", MAGIC[:2], b"z"]
    payloads = [b"".join(words[i] for i in rng.randint(0, 5, rng.randint(0, 12))) for _ in range(10)]
    records = [frame_record(payload) for payload in payloads]
    assert all(len(record) % 4 == 0 for record in records)
    (tmp_path / "t.rec").write_bytes(b"".join(records))
    offsets = scan_offsets(tmp_path / "t.rec")
    assert offsets.tolist() == np.cumsum([0, *map(len, records)])[:-1].tolist()
    files = RecordFiles([tmp_path / "t.rec"])
    assert [read_record(files, 0, offset) for offset in offsets.tolist()] == payloads
    for payload, record in zip(payloads, records, strict=True):
        # A reader that looks for the next magic number, as MXNet does to split a file, finds only starts of parts.
        inside, found = (sum(b[at : at + 4] == MAGIC for at in range(0, len(b), 4)) for b in (payload, record))
        assert found == inside + 1


def test_several_labels_replace_the_one_in_the_header(tmp_path: Path):
    payload = HEADER.pack(3, 9.0, 1, 0) + struct.pack("<3f", 4, 5, 6) + b"image"
    (tmp_path / "t.rec").write_bytes(frame_record(payload))
    heads = read_heads(tmp_path / "t.rec", np.array([0]))
    assert (heads.labels[0], heads.has_image[0]) == (4, True)
    assert split_payload(payload)[2] == b"image"


def test_every_truncation_is_noticed(golden_file: Path):
    for size in range(len(GOLDEN)):
        golden_file.write_bytes(GOLDEN[:size])
        whole = [offset for offset in [*OFFSETS, len(GOLDEN)] if offset <= size]
        if size in OFFSETS:
            assert scan_offsets(golden_file).tolist() == whole[:-1]
        elif size < len(GOLDEN) - 2:  # the last two bytes only fill up
            with pytest.raises(UserError, match=r"t\.rec"):
                scan_offsets(golden_file)
            with pytest.raises(UserError, match=r"t\.rec, record at byte"):
                read_heads(golden_file, np.array(OFFSETS))


@pytest.mark.parametrize("offset", [2, 8, 41, 96, 10**6, -4])
def test_reading_where_no_record_starts_is_refused(golden_file: Path, offset: int):
    with pytest.raises(UserError, match="t.rec, record at byte"):
        read_heads(golden_file, np.array([offset]))
    if offset > 0:
        with pytest.raises(UserError, match=f"record at byte {offset}"):
            read_record(RecordFiles([golden_file]), 0, offset)


def test_more_labels_than_bytes_are_refused(tmp_path: Path):
    (tmp_path / "t.rec").write_bytes(frame_record(HEADER.pack(2**32 - 1, 0, 0, 0) + bytes(100)))
    with pytest.raises(UserError, match="more labels than it holds"):
        read_heads(tmp_path / "t.rec", np.array([0]))
    with pytest.raises(ValueError, match="4294967295 labels"):
        split_payload(HEADER.pack(2**32 - 1, 0, 0, 0) + bytes(100))
