"""`facesyn train-embedder` on drawn people: what it learns, writes, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_embedder import train_arguments, write_taught_faces
from tiny_ldm import EMBEDDER

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_config, read_tensors
from facesyn_cli.models.loading import load_backbone


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught_faces(tmp_path_factory.mktemp("taught"))


def _lines(out: Path, figure: str) -> list:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def _same_weights(first: Path, second: Path) -> bool:
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_the_teacher_on_people_it_has_not_seen(tmp_path: Path, run_cli):
    taught = write_taught_faces(tmp_path, people=40)
    untrained = run_cli(*train_arguments(taught, tmp_path / "untrained", "optimiser.lr=1e-9", steps=1), "--json").json()
    ran = run_cli(*train_arguments(taught, tmp_path / "out", "save_steps=[5]", steps=24), "--json")
    assert ran.code == 0, ran.err
    summary = ran.json()
    assert summary["images"] == 54 and summary["steps"] == 24  # 13 of 40 people are held out
    assert untrained["validation"]["cosine"] < 0.3
    assert summary["validation"]["cosine"] > 0.6 and summary["loss"] < 0.4
    assert summary["validation"]["rank1"] > untrained["validation"]["rank1"]

    header = json.loads((tmp_path / "out" / "facesyn.json").read_text())
    assert header["kind"] == "Weights" and header["extra"]["distilled_from"] == EMBEDDER
    assert read_config(tmp_path / "out")["distilled_from"] == EMBEDDER
    assert load_backbone(tmp_path / "out").name == "ir-lite"
    assert not _same_weights(tmp_path / "out", tmp_path / "out" / "weights" / "step-00000005")
    embed = ("embed", "--images", taught / "faces", "--weights", tmp_path / "out", "--out", tmp_path / "e")
    ran = run_cli(*embed, "--json")
    assert ran.code == 0 and ran.json()["embeddings"] == 80, ran.err


def test_it_stops_at_a_signal_and_goes_on_exactly(taught: Path, tmp_path: Path, run_cli, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    more = ("ema.maximum=0.9", "relational_weight=2", "log_every=3", "validation.every=2")
    assert run_cli(*train_arguments(taught, straight, *more)).code == 0
    asked = iter([None] * 3 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    ran = run_cli(*train_arguments(taught, stopped, *more))
    assert ran.code == 143, ran.err
    monkeypatch.undo()
    assert load_backbone(stopped / "weights" / "step-00000004").name == "ir-lite"
    ran = run_cli(*train_arguments(taught, stopped, *more, "workers=0"))
    assert ran.code == 0 and "going on from step 4 of 7" in ran.err
    assert _same_weights(straight, stopped)
    for figure in ("loss", "cosine", "relational", "validation"):
        assert _lines(straight, figure) == _lines(stopped, figure)
