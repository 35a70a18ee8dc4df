"""Ranks against sorting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.data.pixels import encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.benchmarks import TinyfaceConfig, build_tinyface
from facesyn_cli.evaluation.identification import IdentificationSet, probe_ranks, read_identification
from facesyn_cli.evaluation.verification import unit_rows


def rank_by_sorting(gallery: np.ndarray, people: np.ndarray, probe: np.ndarray, person: int) -> int:
    order = np.argsort(-(gallery @ probe), kind="stable")
    return 1 + int(np.flatnonzero(people[order] == person)[0])


def test_ranks_are_places_in_the_sorted_gallery() -> None:
    random = np.random.RandomState(0)
    people = np.concatenate([random.permutation(np.arange(90) % 30), np.full(60, -1)])
    gallery = unit_rows(random.normal(size=(150, 6)))
    probes = random.randint(0, 30, 300)
    probe = unit_rows(gallery[[np.flatnonzero(people == p)[0] for p in probes]] + random.normal(0, 0.4, (300, 6)))
    expected = [rank_by_sorting(gallery, people, v, p) for v, p in zip(probe, probes, strict=True)]
    assert probe_ranks(gallery, people, probe, probes).tolist() == expected
    assert len(set(expected)) > 10
    protocol = IdentificationSet("tinyface", [""] * 450, lambda k: b"", np.concatenate([people, probes]), 150)
    row, scores = protocol.evaluate(np.concatenate([gallery, probe]) * random.uniform(1, 9, (450, 1)))
    assert scores["rank"].tolist() == expected
    assert row.rank == {k: pytest.approx(np.mean([r <= int(k) for r in expected])) for k in ("1", "5", "20")}
    assert row.pairs == 300 and row.accuracy is None


def test_ties_count_against_the_network() -> None:
    """A network that returns the same for everybody has rank 1 + the number of others, not 1."""
    same = np.tile([[1.0, 0.0]], (5, 1))
    assert probe_ranks(same, np.array([0, 1, 2, -1, 0]), same[:1], np.array([0])).tolist() == [4]


def test_distractors_are_nobody() -> None:
    """-1 never matches, also not a probe's person."""
    gallery = np.array([[0.0, 1], [1, 0]])
    assert probe_ranks(gallery, np.array([0, -1]), np.array([[1.0, 0]]), np.array([0])).tolist() == [2]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(np.full((4, 4, 3), len(name), np.uint8)))


def test_folders(tmp_path: Path) -> None:
    root = tmp_path / "tinyface"
    write(root, "gallery/ann/1.png", "gallery/bo/1.png", "distractors/x.png", "distractors/y.png", "probe/bo/2.png")
    (part,) = build_tinyface(TinyfaceConfig(name="tinyface")).parts(tmp_path, None)
    found = part.load()
    assert found.images == ["gallery/ann/1.png", "gallery/bo/1.png", "distractors/x.png", "distractors/y.png",
                            "probe/bo/2.png"]
    assert found.person.tolist() == [0, 1, -1, -1, 1] and found.num_gallery == 4 and len(found) == 1
    assert found.read(4) == (root / "probe/bo/2.png").read_bytes()


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tinyface does not exist"):
        build_tinyface(TinyfaceConfig(name="tinyface")).parts(tmp_path, None)
    write(tmp_path, "gallery/ann/1.png")
    with pytest.raises(UserError, match="probe does not exist"):
        read_identification(tmp_path, "t", True)
    write(tmp_path, "probe/bo/1.png")
    with pytest.raises(UserError, match="1 probes show people who are not in the gallery, the first is bo/1.png"):
        read_identification(tmp_path, "t", True)
