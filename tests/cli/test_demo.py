"""The demo's faces and pairs; the whole way itself is tested in e2e/test_data_way.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.work import Work
from facesyn_cli.data.drawn_faces import draw_face
from facesyn_cli.evaluation.pairs import read_pairs
from facesyn_cli.stages import demo

SMALL = demo.DemoConfig(identities=3, samples=2, test_identities=6, test_samples=3, pairs=1)


def test_a_face_belongs_to_its_names() -> None:
    face = draw_face(1, "a", "0")
    assert face.shape == (112, 112, 3) and face.dtype == np.uint8
    assert np.array_equal(face, draw_face(1, "a", "0"))
    for other in (draw_face(2, "a", "0"), draw_face(1, "b", "0"), draw_face(1, "a", "1")):
        assert not np.array_equal(face, other)


def test_samples_of_an_identity_are_closer_than_those_of_others_but_not_by_their_color() -> None:
    faces = np.array([[draw_face(0, str(i), str(j)) for j in range(6)] for i in range(30)]) / 255  # (30, 6, H, W, 3)
    means = faces.mean((2, 3))
    assert means.std(axis=1).mean() > means.mean(axis=1).std(axis=0).mean()  # light moves colors more than skin does

    shapes = faces.reshape(30, 6, 14, 8, 14, 8, 3).mean((3, 5))              # what is left without the light's color
    shapes = (shapes - shapes.mean((2, 3), keepdims=True)) / shapes.std((2, 3), keepdims=True)
    shapes = shapes.reshape(180, -1) / np.sqrt(14 * 14 * 3)
    similarity = (shapes @ shapes.T).reshape(30, 6, 30, 6).mean((1, 3))
    assert np.diag(similarity).mean() > similarity[~np.eye(30, dtype=bool)].mean() + 0.1


def test_draws_once_and_completes(tmp_path: Path) -> None:
    work = Work(tmp_path)
    demo.run(SMALL, work)
    assert len(ImageSet.open(work.folder("images")).entries) == 6
    assert len(ImageSet.open(tmp_path / demo.TEST_FOLDER).entries) == 18
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}
    demo.run(SMALL, work)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")} == before


def test_pairs_are_distinct_balanced_and_readable(tmp_path: Path) -> None:
    text = demo.pairs_text(demo.DemoConfig())
    lines = text.splitlines()
    assert len(lines) == 1 + 2 * 10 * 25 == len(set(lines)) and lines[0] == "10\t25"
    assert sum(len(line.split("\t")) == 3 for line in lines[1:]) == 250
    demo.run(SMALL, Work(tmp_path))
    pairs = read_pairs(demo.pairs_path(Work(tmp_path)), ImageSet.open(tmp_path / demo.TEST_FOLDER), "drawn")
    assert len(pairs.is_same) == 20 and sum(pairs.is_same) == 10


def test_more_pairs_than_exist_are_refused() -> None:
    with pytest.raises(ValidationError, match="exist"):
        demo.DemoConfig(test_identities=2, test_samples=2)
