"""train-fr in two processes trains what one process trains, and resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ran, finish, spawn
from tiny_fr import train_arguments, write_faces

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist

# four groups a step, two for each of two processes; dropout, transforms and validation are on
MORE = ("batch_size=16", "validation_fraction=0.4", "seed=1", "checkpoint_every=1", "optimizer.lr=0.01", "head.scale=8")
TOLERANCE = 1e-3  # of a tensor's largest value (or 1e-4): sums over groups are rounded in another order


def _difference(first: Path, second: Path) -> float:
    largest = 0.0
    for name in ("model.safetensors", "head.safetensors"):
        a, b = read_tensors(first / name), read_tensors(second / name)
        assert a.keys() == b.keys()
        for key in a:
            scale = a[key].double().abs().max().clamp(min=1e-4)
            largest = max(largest, ((a[key].double() - b[key].double()).abs().max() / scale).item())
    return largest


def _launch(*arguments: str) -> Ran:
    """Run the command in two processes."""
    return finish(spawn(*arguments, processes=2))


def _train_both(faces: Path, alone: Path, together: Path, *more: str) -> None:
    ran = finish(spawn(*train_arguments(faces, alone, *more)))
    assert ran.code == 0, ran.err
    assert "on each of 1 processes" in ran.err
    ran = _launch(*train_arguments(faces, together, *more), "--json")
    assert ran.code == 0, ran.err
    assert ran.err.count("on each of 2 processes") == 1, ran.err
    assert json.loads(ran.out)["epochs"] == 3  # one document: only the first process prints


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together, grown = tmp_path / "alone", tmp_path / "together", tmp_path / "grown"
    _train_both(faces, alone, together, *MORE)
    assert _difference(alone, together) < TOLERANCE
    for first, second in zip(_validations(alone), _validations(together), strict=True):
        assert first == pytest.approx(second, abs=0.06)
    for epochs in (2, 3):
        ran = _launch(*train_arguments(faces, grown, *MORE, epochs=epochs))
        assert ran.code == 0, ran.err
    assert _difference(together, grown) == 0


def test_curricularface_sees_the_mean_of_all_processes(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together = tmp_path / "alone", tmp_path / "together"
    _train_both(faces, alone, together, *MORE, "head.name=curricularface")
    assert _difference(alone, together) < TOLERANCE
    t = [read_tensors(out / "head.safetensors")["t"].item() for out in (alone, together)]
    assert t[0] == pytest.approx(t[1], abs=1e-6) and abs(t[0]) > 1e-4


def test_global_norms_make_groups_of_all_processes_one(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together = tmp_path / "alone", tmp_path / "together"
    _train_both(faces, alone, together, *MORE, "backbone.dropout=0", "sync_batchnorm=true", "transforms=[]")
    assert _difference(alone, together) < TOLERANCE


def test_wrong_inputs_are_told_once(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    ran = _launch(*train_arguments(faces, tmp_path / "fr", "norm_batch_size=8"))
    assert ran.code != 0
    assert ran.err.count("do not divide over 2 processes; start 1 processes or use batch_size 16") == 1, ran.err
    (faces / "p5" / "2.png").write_bytes(b"no image")  # whichever process meets it, the first one tells
    ran = _launch(*train_arguments(faces, tmp_path / "fr"))
    assert ran.code != 0
    assert ran.err.count("p5/2.png") == 1 and "unreadable" in ran.err, ran.err


def _validations(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["val_held-out_accuracy"] for line in lines if "val_held-out_accuracy" in line]
