"""`accelerate launch ... embed`: two processes write what one writes."""

from __future__ import annotations

import pytest
from conftest import finish, spawn
from tiny_recogniser import write_faces, write_recogniser


@pytest.mark.dist
def test_two_processes_equal_one(run_cli, tmp_path):
    images, weights = write_faces(tmp_path / "faces", people=5, photos=3), write_recogniser(tmp_path / "fr")
    (images / "p2" / "1.png").write_bytes(b"broken")
    arguments = ("embed", "--images", images, "--weights", weights, "--device", "cpu", "--json",
                 "batch_size=2", "part_size=4")
    alone = finish(spawn(*arguments, "--out", tmp_path / "one"))
    assert alone.code == 0, alone.err
    together = finish(spawn(*arguments, "--out", tmp_path / "two", processes=2))
    assert together.code == 0, together.err
    one, two = alone.json(), together.json()
    assert one["embeddings"] == 14 and one["unreadable"] == 1
    assert {**one, "folder": ""} == {**two, "folder": ""}, "one result, printed once"
    for name in ("embeddings.npy", "keys.txt", "unreadable.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
