"""Published embeddings: every form, as an EmbeddingSet and as a ContextSet, and damage of every kind."""

from __future__ import annotations

import io
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.vector_files import normalize, read_vector_file
from facesyn_cli.console import log
from facesyn_cli.errors import UserError

NAMES = ["0000045/002.jpg", "0000045/001.jpg", "0000099/001.jpg", "flat.png"]
KEYS = ["0000045/002", "0000045/001", "0000099/001", "flat/0"]
VECTORS = np.random.RandomState(0).standard_normal((4, 512)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
KINDS = ("array", "dict", "old dict", "files", "torch files")


def write(folder: Path, kind: str) -> Path:
    """Write the same four rows in one of the published forms; return what a user would name."""
    folder.mkdir(exist_ok=True)
    if kind == "array":
        np.save(folder / "elastic_embed.npy", VECTORS)
        (folder / "image_names.pkl").write_bytes(pickle.dumps(NAMES))
        return folder / "elastic_embed.npy"
    if kind.endswith("dict"):
        torch.save(dict(zip(NAMES, VECTORS, strict=True)), folder / "contexts.npy",
                   _use_new_zipfile_serialization=kind == "dict")
        return folder / "contexts.npy"
    for name, vector in zip(NAMES, VECTORS, strict=True):
        path = (folder / name).with_suffix(".npy")
        path.parent.mkdir(exist_ok=True)
        torch.save(vector, path) if kind == "torch files" else np.save(path, vector)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_an_embedding_set(tmp_path, kind):
    found = EmbeddingSet.open(write(tmp_path / "set", kind))
    np.testing.assert_allclose(found.join(KEYS), UNIT, rtol=0, atol=1e-7)
    assert sorted(found.keys) == sorted(KEYS) and found.embedder is None
    with pytest.raises(UserError, match="no embedding for 1 of 1 images, first 'nobody/0'"):
        found.join(["nobody/0"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_a_context_set(tmp_path, kind):
    found = ContextSet.open(write(tmp_path / "set", kind))
    numbered, stems = ["0", "1", "2", "3"], [name.rpartition(".")[0] for name in NAMES]
    expected = {"array": numbered, "files": stems, "torch files": stems}.get(kind, NAMES)
    assert sorted(found.identities) == sorted(expected)
    rows = [stems.index(origin["name"].removesuffix(".jpg").removesuffix(".png")) for origin in found.origins]
    np.testing.assert_allclose(found.vectors, UNIT[rows], rtol=0, atol=1e-7)


def test_a_folder_with_one_array_is_that_array(tmp_path):
    path = write(tmp_path / "set", "array")
    assert EmbeddingSet.open(path.parent).digest == EmbeddingSet.open(path).digest


def test_names_may_be_given(tmp_path):
    path = write(tmp_path / "set", "array")
    (tmp_path / "set" / "image_names.pkl").rename(tmp_path / "order.pkl")
    with pytest.raises(UserError, match="no image_names.pkl or image_names.txt beside it.* a row-order list is needed"):
        EmbeddingSet.open(path)
    assert EmbeddingSet.open(path, tmp_path / "order.pkl").keys == KEYS
    (tmp_path / "other.txt").write_text("".join(f"{name}\n" for name in reversed(NAMES)))
    other = EmbeddingSet.open(path, tmp_path / "other.txt")
    assert other.keys == KEYS[::-1] and other.digest != EmbeddingSet.open(path, tmp_path / "order.pkl").digest
    (tmp_path / "short.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="names 2 images, but .* has 4 rows"):
        EmbeddingSet.open(path, tmp_path / "short.txt")


def test_rows_without_names_are_numbered_and_that_is_said(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(log, "info", said.append)
    np.save(tmp_path / "elasticface_embeddings.npy", VECTORS.astype(np.float64))
    found = ContextSet.open(tmp_path / "elasticface_embeddings.npy")
    assert found.identities == ["0", "1", "2", "3"] and "name" not in found.origins[0]
    assert len(said) == 1 and "row numbers are the identities" in said[0]


def test_rows_are_normalized_alike_in_blocks(monkeypatch):
    from facesyn_cli.artifacts import vector_files

    whole = normalize(VECTORS)
    monkeypatch.setattr(vector_files, "_BLOCK", 3)
    assert np.array_equal(normalize(VECTORS), whole)
    bad = VECTORS.copy()
    bad[[1, 3]] = 0
    with pytest.raises(UserError, match="2 embeddings are zero or not finite, first row 1"):
        normalize(bad)


@pytest.mark.parametrize(("kind", "says"), [
    ("two arrays", "holds several .npy files, a.npy and others"), ("widths", "holds 100 numbers"),
    ("object", "not a plain array"), ("matrix", "is float32 of shape \\(2, 512\\)"),
        ("big", "a single vector, as each file of its folder"),
    ("names of a dict", "a dict of names already"), ("names of files", "have names already"),
])
def test_folders_that_are_none_of_the_forms(tmp_path, kind, says):
    names = None
    if kind == "two arrays":
        np.save(tmp_path / "a.npy", VECTORS)
        np.save(tmp_path / "b.npy", VECTORS)
    elif kind == "names of a dict":
        write(tmp_path, "dict")
        names = tmp_path / "x.txt"
    else:
        np.save(tmp_path / "a.npy", VECTORS[0])
        np.save(tmp_path / "b.npy", VECTORS[1])
        third = {"widths": VECTORS[0, :100], "matrix": VECTORS[:2], "big": np.zeros(2**18, np.float32),
                 "object": np.array([None])}.get(kind, VECTORS[0])
        np.save(tmp_path / "c.npy", third, allow_pickle=True)
        names = tmp_path / "x.txt" if kind == "names of files" else None
    with pytest.raises(UserError, match=says) as caught:
        read_vector_file(tmp_path, names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*KINDS, "names"])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, kind):
    """Cut anywhere, any bit flipped: whatever comes of it is a set of unit rows or one clear error."""
    path = write(tmp_path / "set", "array" if kind == "names" else kind)
    victim = path
    if kind == "names":
        victim = path.with_name("image_names.pkl")
    elif path.is_dir():
        victim = next(path.rglob("001.npy"))
    data = victim.read_bytes()
    rng = np.random.RandomState(0)
    damaged = [data[:cut] for cut in (0, 1, 3, 9, *rng.randint(10, len(data), 8))]
    for place in (*range(min(len(data), 200)), *rng.randint(0, len(data), 40)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randint(8)
        damaged.append(bytes(flipped))
    damaged += [b"\x89PNG\r\n\x1a\n" + data, b"{}", data + data]
    refused = 0
    for content in damaged:
        victim.write_bytes(content)
        try:
            found = EmbeddingSet.open(path)
            assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
            assert len(found.keys) == len(found.vectors) and all(isinstance(key, str) for key in found.keys)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert refused > 10


def _claims_a_lot(kind: str) -> bytes:
    if kind == "array":
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (2**33, 512)})
        return file.getvalue() + bytes(4096)
    if kind == "long header":
        return b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 4096
    if kind == "torch array":  # numpy's _reconstruct with 2**40 bytes
        honest, small, large = torch_bytes({"0": VECTORS[0]}), b"K\x00\x85", b"\x8a\x06\0\0\0\0\0\x01\x85"
    else:  # a storage of 2**36 numbers
        content = {"0": torch.from_numpy(VECTORS[0])}
        honest, small, large = torch_bytes(content), b"M\x00\x02N", b"\x8a\x05\0\0\0\0\x10N"
    assert small in honest
    return honest.replace(small, large, 1)


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["array", "long header", "torch array", "torch storage"])
def test_a_file_that_claims_a_lot_takes_little_memory(tmp_path, kind):
    path = tmp_path / "x.npy"
    path.write_bytes(_claims_a_lot(kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        EmbeddingSet.open(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_an_archive_of_arrays_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones((3, 512), np.float32))
    with pytest.raises(UserError, match=r"x\.npz is a NumPy archive of arrays \(\.npz\); an \(N, 512\) \.npy"):
        read_vector_file(tmp_path / "x.npz")
