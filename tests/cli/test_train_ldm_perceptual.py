"""The perceptual loss of train-ldm as a command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_latents import ldm_arguments, write_faces

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_tensors


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"))


def figures(folder: Path, name: str) -> list[float]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_it_is_trained_resumed_and_falls(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    straight, stopped, plain = tmp_path / "straight", tmp_path / "stopped", tmp_path / "plain"
    more = ("perceptual.weight=2", "perceptual.eyes_and_mouth=3", "precision=bf16")
    assert run_cli(*ldm_arguments(faces, straight, *more, steps=8)).code == 0
    assert len(figures(straight, "perceptual")) == 8 and min(figures(straight, "perceptual")) > 0
    asked = iter([None] * 4 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    assert run_cli(*ldm_arguments(faces, stopped, *more, steps=8)).code == 143
    monkeypatch.undo()
    assert run_cli(*ldm_arguments(faces, stopped, *more, steps=8)).code == 0
    assert figures(straight, "perceptual") == figures(stopped, "perceptual")
    a, b = (read_tensors(folder / "model.safetensors") for folder in (straight, stopped))
    assert all(a[key].equal(b[key]) for key in a)
    assert run_cli(*ldm_arguments(faces, plain, "precision=bf16", steps=8)).code == 0
    assert not figures(plain, "perceptual")
    assert any(not a[key].equal(value) for key, value in read_tensors(plain / "model.safetensors").items())


def test_a_heavy_one_falls(faces: Path, tmp_path: Path, run_cli):
    more = ("perceptual.weight=20", "optimizer.lr=0.01", "context_dropout=0")
    assert run_cli(*ldm_arguments(faces, tmp_path / "ldm", *more, steps=60)).code == 0
    found = figures(tmp_path / "ldm", "perceptual")
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])


def test_bad_settings_are_refused_in_one_line(faces: Path, tmp_path: Path, assert_refused):
    ldm = lambda *more: ldm_arguments(faces, tmp_path / "x", *more)  # noqa: E731
    assert_refused(*ldm("perceptual.weight=0"), says="perceptual.weight")
    assert_refused(*ldm("perceptual.maps=7"), says="perceptual.maps is 7, the decoder has 3 resolutions")
    words = [word for word in ldm("autoencoder_model=pixels", "perceptual.weight=1")
             if word not in ("--autoencoder", "taesd3")]
    assert_refused(*words, says="perceptual needs the feature maps of the autoencoder's decoder")
    assert not (tmp_path / "x").exists()
