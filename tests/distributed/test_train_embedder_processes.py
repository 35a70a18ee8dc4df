"""train-embedder in two processes trains what one trains, and resumes: bit for bit, or on another number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import finish, spawn
from damage import flip, unfinish
from tiny_embedder import train_arguments, write_taught_faces

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist

# two groups a step, one for each of two processes; dropout, average, transforms and validation are on
MORE = ("backbone.dropout=0.2", "ema.maximum=0.9", "relational_weight=1", "lr_schedule.name=constant",
        "optimizer.name=adam", "optimizer.eps=1e-3", "validate_every=1")


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    taught = write_taught_faces(tmp_path)
    alone, together, grown = tmp_path / "alone", tmp_path / "together", tmp_path / "grown"
    ran = finish(spawn(*train_arguments(taught, alone, *MORE, steps=3)))
    assert ran.code == 0, ran.err
    ran = finish(spawn(*train_arguments(taught, together, *MORE, steps=3), "--json", processes=2))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 3  # one document: only the first process prints
    assert ran.err.count("12 images to train on") == 1, ran.err
    a, b = (read_tensors(out / "model.safetensors") for out in (alone, together))
    for name in a:  # sums over groups are rounded in another order
        assert (a[name].double() - b[name].double()).abs().max() <= 1e-3 * max(a[name].double().abs().max(), 1e-4), name
    for first, second in zip(_lines(alone), _lines(together), strict=True):
        assert first.keys() == second.keys()
        for figure in {"loss", "cosine", "relational"} & first.keys():
            assert first[figure] == pytest.approx(second[figure], rel=1e-3)
        if "val_cosine" in first:
            assert first["val_cosine"] == pytest.approx(second["val_cosine"], abs=1e-3)
    for steps in (1, 3):
        ran = finish(spawn(*train_arguments(taught, grown, *MORE, steps=steps), processes=2))
        assert ran.code == 0, ran.err
    c = read_tensors(grown / "model.safetensors")
    assert all((b[name] == c[name]).all() for name in b)
    elastic = tmp_path / "elastic"
    for steps, processes in ((1, 2), (2, 1), (3, 2)):
        ran = finish(spawn(*train_arguments(taught, elastic, *MORE, steps=steps), processes=processes))
        assert ran.code == 0, ran.err
    c = read_tensors(elastic / "model.safetensors")
    for name in b:
        assert (b[name].double() - c[name].double()).abs().max() <= 1e-3 * max(b[name].double().abs().max(), 1e-4), name


def test_all_processes_resume_from_the_older_checkpoint_when_the_newest_is_damaged(tmp_path: Path):
    taught, out = write_taught_faces(tmp_path), tmp_path / "out"
    arguments = train_arguments(taught, out, *MORE, "checkpoint_every=1", steps=3)
    assert finish(spawn(*arguments, processes=2)).code == 0
    weights = read_tensors(out / "model.safetensors")
    unfinish(out, "model.safetensors")
    older, newer = sorted((out / "checkpoints").iterdir())
    flip(newer / "model.safetensors")
    ran = finish(spawn(*arguments, processes=2))
    assert ran.code == 0, ran.err
    assert ran.err.count(f"{newer} is damaged") == 1 and older.name in ran.err
    again = read_tensors(out / "model.safetensors")
    assert all((weights[name] == again[name]).all() for name in weights)


def test_an_unreadable_photo_is_told_once(tmp_path: Path):
    taught = write_taught_faces(tmp_path)
    (taught / "faces" / "p1" / "0.png").write_bytes(b"no image")  # whichever process meets it, the first one tells
    ran = finish(spawn(*train_arguments(taught, tmp_path / "out", *MORE), processes=2))
    assert ran.code != 0
    assert ran.err.count("p1/0.png") == 1 and "unreadable" in ran.err, ran.err


def _lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
