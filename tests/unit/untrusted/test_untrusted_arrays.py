"""Array files of others: headers are held against the size of the file, objects are never read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import map_array, read_archive, read_array


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text + data


def header(shape: str = "(2,)", descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


REFUSED = {
    "empty": b"", "text": b"hello", "magic only": b"\x93NUMPY", "cut header": npy(header(), bytes(8))[:40],
    "version 9": npy(header(), bytes(8), b"\x09\0"), "no dict": npy("[1]"), "code": npy("__import__('os')"),
    "nested": npy("(" * 5000), "unclosed": npy("{'descr"), "huge": npy(header("(10**12,)")),
    "huge shape": npy(header("(1000000000000, 512)"), bytes(8)), "overflow": npy(header("(4294967296, 4294967296)")),
    "negative": npy(header("(-2,)"), bytes(8)), "text as shape": npy(header("('a',)"), bytes(8)),
    "bool as shape": npy(header("(True, 2)"), bytes(8)), "fewer": npy(header("(3,)"), bytes(8)),
    "more": npy(header("(1,)"), bytes(8)), "objects": npy(header(descr="'|O'"), bytes(16)),
    "records": npy(header(descr="[('a', '<f4'), ('b', '<f4')]"), bytes(16)), "no type": npy(header(descr="'<q9'")),
    "dates": npy(header(descr="'<M8[s]'"), bytes(16)), "subarrays": npy(header(descr="('<f4', (2,))"), bytes(16)),
    "types of lists": npy(header(descr="[[]]"), bytes(8)), "order as number": npy(header(order="7"), bytes(8)),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("read", [read_array, map_array])
def test_refused(tmp_path: Path, read, data: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(UserError, match="noise") as caught:
        read(path, "noise")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [
    np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float16(3),
    np.zeros((0, 512), np.float32), np.array(["a", "bc"]), np.array([True, False]), np.arange(3, dtype=">i8"),
], ids=["plain", "fortran", "scalar", "empty", "text", "bool", "big endian"])
def test_read_back(tmp_path: Path, value: np.ndarray) -> None:
    path = tmp_path / "a.npy"
    np.save(path, value)
    for found in (read_array(path), map_array(path)):
        assert found.dtype == value.dtype and found.shape == value.shape and (np.asarray(found) == value).all()


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros((100, 100)), b=np.array("text"))
    found = read_archive(path)
    assert found["a"].shape == (100, 100) and found["b"].item() == "text"
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04" * 50, whole[:100], whole[:200] + b"\xff" * 20 + whole[220:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not an archive of arrays"):
            read_archive(path)


def test_archives_that_are_traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    monkeypatch.setattr("facesyn_cli.untrusted.arrays._SMALL", 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(4 * 2**20))
    with pytest.raises(UserError, match=f"unpacks to {4 * 2**20} bytes"):
        read_archive(path)
    content = io.BytesIO()
    np.save(content, np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content.getvalue())
    with pytest.raises(UserError, match="not numbers"):
        read_archive(path)


def test_an_archive_without_an_array_that_is_needed(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.ones(2), two=np.ones(3))
    assert read_archive(tmp_path / "a.npz", names=("two",)).keys() == {"one", "two"}
    with pytest.raises(UserError, match="lacks four, three; a part was expected"):
        read_archive(tmp_path / "a.npz", "a part", ("one", "three", "four"))
