"""Damaged and hostile sets: one clear line or the right bytes, with flat memory, and nothing is run or unpacked."""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny_records import PASSTHROUGH, tiny_images, write_set

from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.recordio import HEADER, frame_record
from facesyn_cli.errors import UserError

IMAGES = tiny_images((4, 3), side=24)
TURNS = 40
MEMORY = 24 * 2**20     # bytes a reader may hold at once, whatever a file of some kB says


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole sets; the data file of each is the largest."""
    root = tmp_path_factory.mktemp("sets")
    return {name: write_set(name, root / name, IMAGES) for name in PASSTHROUGH}


def data_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def outcome(folder: Path, name: str) -> str:
    """Open and read everything; return the one line of the error, or an empty text."""
    tracemalloc.start()
    try:
        records = RecordSet.open(folder, name)
        for row in range(len(records)):
            records.read(row)
        return ""
    except UserError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY, f"{peak} bytes were held"


def check(line: str, folder: Path) -> None:
    assert "\n" not in line and len(line) < 600
    assert str(folder) in line, f"the message does not name the file: {line}"


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_truncated_anywhere(sets: dict[str, Path], tmp_path: Path, name: str):
    whole = data_file(sets[name]).read_bytes()
    sizes = {0, 1, 3, 4, 7, 8, 100, 511, 512, 513, 4096, 8191, len(whole) // 2, len(whole) - 600, len(whole) - 1025}
    sizes |= set(np.random.RandomState(0).randint(0, len(whole) - 600, 25).tolist())
    for size in sorted(sizes):
        folder = tmp_path / str(size)
        shutil.copytree(sets[name], folder)
        data_file(folder).write_bytes(whole[:size])
        line = outcome(folder, name)
        assert line, f"cut to {size} of {len(whole)} bytes, but read"
        check(line, folder)


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_flipped_bits(sets: dict[str, Path], tmp_path: Path, name: str):
    """Half of the flips hit the structure: the first and last kB of the file and all pages that begin at 4 kB."""
    whole = data_file(sets[name]).read_bytes()
    folder = tmp_path / "set"
    shutil.copytree(sets[name], folder)
    path = data_file(folder)
    rng = np.random.RandomState(1)
    structure = np.concatenate([np.arange(200), np.arange(len(whole) - 1200, len(whole)),
                                np.arange(8192, min(8192 + 600, len(whole)))])
    refused = 0
    for turn in range(TURNS):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.choice(structure) if turn % 2 else rng.randint(len(whole))
            damaged[place % len(whole)] ^= 1 << rng.randint(8)
        path.write_bytes(damaged)
        line = outcome(folder, name)
        if line:
            refused += 1
            check(line, folder)
    assert refused > TURNS // 20


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_wrong_kind(sets: dict[str, Path], tmp_path: Path, name: str):
    zeros = bytes(9000)
    contents = [b"", b"\x89PNG\r\n\x1a\n" + zeros, zeros, b"PK\x03\x04" + zeros, b"label\tname\n" * 900]
    contents += [data_file(sets[other]).read_bytes() for other in PASSTHROUGH if other != name]
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        shutil.copytree(sets[name], folder)
        data_file(folder).write_bytes(content)
        line = outcome(folder, name)
        assert line, f"content {number} was read"
        check(line, folder)


@pytest.mark.parametrize("name", PASSTHROUGH)
def test_nothing_there(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    assert "empty" in outcome(tmp_path / "empty", name)
    assert "does not exist" in outcome(tmp_path / "none", name)


def test_rec_that_announces_much(tmp_path: Path):
    path = tmp_path / "t.rec"
    for content in (
        struct.pack("<II", 0xCED7230A, 2**29 - 1) + bytes(100),
        frame_record(HEADER.pack(2**32 - 1, 0, 0, 0) + bytes(100)),
        frame_record(HEADER.pack(2, 0, 0, 0) + struct.pack("<2f", 3e38, 3e38)) + frame_record(HEADER.pack(0, 0, 1, 0)),
        struct.pack("<II", 0xCED7230A, 1 << 29) * 1000,
    ):
        path.write_bytes(content)
        line = outcome(path, "rec")
        assert line
        check(line, path)


def tar_header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf()[:512])
    block[0:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(("kind", "size"), [
    (b"0", b"77777777777"), (b"x", b"77777777777"), (b"L", b"00010000000"), (b"x", b"\x80" + b"\xff" * 11),
    (b"0", b"\xff" * 12), (b"0", b"-0000000001"), (b"L", b"\x80" + bytes(3) + b"\x7f" * 8),
])
def test_tar_that_announces_much(tmp_path: Path, kind: bytes, size: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_header(b"p/a.jpg", size, kind) + bytes(3 * 2**20))
    line = outcome(path, "webdataset")
    assert line
    check(line, path)


def test_pax_size_is_bounded_by_the_file(tmp_path: Path):
    pax = b"33 size=9999999999999999999999\n" + b"22 size=99999999999999\n"
    path = tmp_path / "a.tar"
    body = tar_header(b"x", b"%011o" % len(pax), b"x") + pax.ljust(512, b"\0")
    path.write_bytes(body + tar_header(b"p/a.jpg", b"00000000001", b"0") + bytes(2048))
    line = outcome(path, "webdataset")
    assert "cut off" in line or "PAX header" in line
    pax = b"23 size=99999999999999\n"
    path.write_bytes(tar_header(b"x", b"%011o" % len(pax), b"x") + pax.ljust(512, b"\0")
                     + tar_header(b"p/a.jpg", b"00000000001", b"0") + bytes(2048))
    assert "cut off" in outcome(path, "webdataset")


def test_lmdb_trees_that_bite_their_tail(sets: dict[str, Path], tmp_path: Path):
    """A branch page whose child is itself, and an entry count of 2^63."""
    whole = bytearray((sets["lmdb"] / "data.mdb").read_bytes())
    root_place = 16 + 24 + 48 + 40
    path = tmp_path / "data.mdb"
    for meta in (0, 4096):
        root = struct.unpack_from("<Q", whole, meta + root_place)[0]
        if root == 2**64 - 1:
            continue
        looped = bytearray(whole)
        page = root * 4096
        struct.pack_into("<HHH", looped, page + 10, 1, 18, 100)     # a branch with one node
        struct.pack_into("<HHHHH", looped, page + 16, 100, 0, 0, 0, 0)
        struct.pack_into("<HHHH", looped, page + 100, root, 0, 0, 0)
        path.write_bytes(looped)
        assert "no sound LMDB file" in outcome(tmp_path, "lmdb")
        many = bytearray(whole)
        struct.pack_into("<Q", many, meta + root_place - 8, 2**63)
        path.write_bytes(many)
        assert "no sound LMDB file" in outcome(tmp_path, "lmdb")


def test_lists_and_indexes_full_of_nonsense(sets: dict[str, Path], tmp_path: Path):
    rng = np.random.RandomState(2)
    for turn in range(30):
        folder = tmp_path / str(turn)
        shutil.copytree(sets["rec"], folder)
        key, offset = rng.randint(0, 2**31, 2)
        (folder / "train.idx").write_bytes(rng.bytes(500) if turn % 2 else b"%d\t%d\n" % (key, offset))
        line = outcome(folder, "rec")
        assert line
        check(line, folder)
        shutil.copy(sets["rec"] / "train.idx", folder)
        (folder / "list.txt").write_bytes(b"1\t../../x.jpg\n" + rng.bytes(300))
        assert outcome(folder, "rec") == "", "labels of its own decide"


def test_parquet_whose_features_are_hostile(tmp_path: Path):
    import pyarrow as arrow
    import pyarrow.parquet

    table = arrow.table({"image": [b"a"], "label": [0]})
    for features in (
        {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "a"]}},
        {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": {"a": 1}}},
        {"gone": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a"]}},
        {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": []}},
        {"image": 5, "label": "x"}, [1], None,
    ):
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
        line = outcome(tmp_path, "parquet")
        if line:
            check(line, tmp_path)
    for text in (b"[" * 100_000, b"\xff\xfe", b"{}"):
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "x.parquet")
        assert outcome(tmp_path, "parquet") == "", "without features the names of the columns decide"


def test_readers_write_nothing(sets: dict[str, Path]):
    for name, folder in sets.items():
        before = {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*")}
        assert outcome(folder, name) == ""
        assert {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*")} == before
