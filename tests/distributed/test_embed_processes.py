"""`embed` and `eval` in two processes write what one process writes."""

from __future__ import annotations

import pickle

import pytest
from conftest import finish, spawn
from tiny_recognizer import face, write_faces, write_recognizer

from facesyn_cli.data.pixels import encode_png

pytestmark = pytest.mark.dist


def run_in_two(*arguments: object) -> dict:
    """Run a command in two processes and return the JSON it printed (once)."""
    ran = finish(spawn(*arguments, processes=2))
    assert ran.code == 0, ran.err
    return ran.json()


def run_in_one(*arguments: object) -> dict:
    ran = finish(spawn(*arguments))
    assert ran.code == 0, ran.err
    return ran.json()


def test_embed(tmp_path):
    images, weights = write_faces(tmp_path / "faces", people=5, photos=3), write_recognizer(tmp_path / "fr")
    (images / "p2" / "1.png").write_bytes(b"broken")
    arguments = ("embed", "--images", images, "--weights", weights, "--device", "cpu", "--json",
                 "batch_size=2", "part_size=4")
    one = run_in_one(*arguments, "--out", tmp_path / "one")
    two = run_in_two(*arguments, "--out", tmp_path / "two")
    assert one["embeddings"] == 14 and one["unreadable"] == 1
    assert {**one, "folder": ""} == {**two, "folder": ""}
    for name in ("embeddings.npy", "keys.txt", "unreadable.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_eval(tmp_path):
    weights = write_recognizer(tmp_path / "fr")
    pairs = []
    for name, shift in (("a", 0), ("b", 40), ("c", 80)):
        photos = [(shift + p, k) for p in range(5) for k in (0, 1)] + [(shift + p, 0) for p in range(10)]
        content = [encode_png(face(*photo)) for photo in photos], [True] * 5 + [False] * 5
        (tmp_path / f"{name}.bin").write_bytes(pickle.dumps(content))
        pairs += ["--pairs", tmp_path / f"{name}.bin"]
    arguments = ("eval", "--weights", weights, *pairs, "--device", "cpu", "--json")
    one = run_in_one(*arguments, "--out", tmp_path / "one")
    two = run_in_two(*arguments, "--out", tmp_path / "two")
    assert {**one, "folder": ""} == {**two, "folder": ""}
    assert (tmp_path / "one" / "table.csv").read_bytes() == (tmp_path / "two" / "table.csv").read_bytes()
