"""Record files that hold more than a set uses: what is left out is counted and said."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tiny_records import NAME, encoded, tiny_images, write_set

from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.record_files import LeftOut
from facesyn_cli.data.recordio import HEADER, frame_record

A = encoded(1)


def payload(key: int, label: float, image: bytes = A) -> bytes:
    return HEADER.pack(0, label, key, 0) + image


def rec_file(path: Path, payloads: list[bytes], listed: list[int]) -> None:
    places, data = [], b""
    for content in payloads:
        places.append(len(data))
        data += frame_record(content)
    path.write_bytes(data)
    path.with_suffix(".idx").write_text("".join(f"{key}\t{places[key]}\n" for key in listed))


@pytest.mark.parametrize(("payloads", "listed", "used", "left_out"), [
    ([payload(k, k) for k in range(4)], [1, 3], 2, {"records that t.idx does not list": 2}),
    ([payload(k, k) for k in range(4)], [0, 1, 2, 3], 4, {}),
    ([payload(0, 0), payload(1, 1, b""), payload(2, 1)], [0, 1, 2], 2, {"records without an image": 1}),
    ([HEADER.pack(2, 0, 0, 0) + struct.pack("<2f", 3, 5), payload(1, 0), payload(2, 1), payload(3, 1),
      HEADER.pack(2, 0, 4, 0) + struct.pack("<2f", 1, 3)], [0, 1, 2, 3, 4], 2,
     {"images that record 0 does not announce": 1}),
])
def test_rec(tmp_path: Path, caplog: pytest.LogCaptureFixture, payloads: list, listed: list, used: int, left_out: dict):
    rec_file(tmp_path / "t.rec", payloads, listed)
    records = RecordSet.open(tmp_path)
    assert len(records) == used and dict(records.left_out) == left_out
    assert all(reason in caplog.text for reason in left_out) and bool(left_out) == ("left out" in caplog.text)


def test_a_record_in_several_parts_is_no_unlisted_one(tmp_path: Path):
    magic = struct.pack("<I", 0xCED7230A)
    rec_file(tmp_path / "t.rec", [payload(0, 0), payload(1, 1, b"aaaa" + magic + b"bbbb"), payload(2, 1)], [0, 1, 2])
    records = RecordSet.open(tmp_path)
    assert len(records) == 3 and not records.left_out


def test_tfrecord_files_that_the_index_does_not_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_set("tfrecord", tmp_path, tiny_images())
    assert not RecordSet.open(folder).left_out
    (folder / f"{NAME}-00001.tfrecord").write_bytes((folder / f"{NAME}-00000.tfrecord").read_bytes())
    (folder / "other-00000.tfrecord").write_bytes(b"x")
    assert sum(RecordSet.open(folder).left_out.values()) == 1
    assert f"{NAME}-00001.tfrecord" in caplog.text


def test_parquet_files_of_other_splits_and_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = write_set("parquet", tmp_path, tiny_images())
    assert not RecordSet.open(folder).left_out
    train, = (folder / "data").iterdir()
    for name in ("data/test-00000-of-00001.parquet", "more/train-0.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(train.read_bytes())
    assert dict(RecordSet.open(folder).left_out) == {"other Parquet files": 2}
    assert "data/test-00000-of-00001.parquet" in caplog.text


def test_lines_stay_short_and_say_nothing_where_nothing_is_left_out(caplog: pytest.LogCaptureFixture):
    left_out = LeftOut()
    left_out.say("a.tar", 3)
    assert not caplog.text
    for k in range(12):
        left_out.add(f".{k} files", f"bad\nname.{k}", count=k + 1)
    left_out.say("a.tar", 3)
    for k in range(1000):
        left_out.add(f".{k} files", "name")
    assert len(left_out.counts) == 51 and sum(left_out.counts.values()) == 78 + 1000
    assert "12 .11 files (first 'bad%000aname.11')" in caplog.text and "and 4 other kinds" in caplog.text
