"""train-autoencoder in two processes learns what one process learns, and resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import finish, spawn
from tiny_ldm import SIZE, write_faces

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist

SETTINGS = (
    "device=cpu", f"image_size={SIZE}", "autoencoder.patch=2", "autoencoder.channels=[8]", "autoencoder.num_groups=4",
    "autoencoder.smooth=4", "validation_fraction=0.3", "validate_every=4", "preview_every=4", "log_every=1",
    "checkpoint_every=4", "adversarial.weight=0.5", "adversarial.start=2", "adversarial.channels=8",
    "adversarial.layers=1", "optimizer.eps=0.001",  # eps keeps Adam from blowing rounding up where gradients vanish
)


def _figures(out: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def _largest_difference(first: Path, second: Path) -> float:
    a, b = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    write_faces(tmp_path)
    alone, together, grown = tmp_path / "alone", tmp_path / "together", tmp_path / "grown"
    for out, steps, processes in ((alone, 6, 1), (together, 6, 2), (grown, 3, 2), (grown, 6, 2)):
        words = ("train-autoencoder", "--images", tmp_path / "faces", "--out", out, "--steps", steps, "--batch-size", 5)
        ran = finish(spawn(*words, *SETTINGS, "--json", processes=processes))
        assert ran.code == 0, ran.err
        assert ("2 processes" in ran.err) == (processes == 2)
        assert json.loads(ran.out)["steps"] == steps  # one document: only the first process prints
    assert _largest_difference(alone, together) < 1e-5
    for name in ("loss", "adversarial", "adversarial_factor", "discriminator", "val_psnr"):
        tolerance = 2e-2 if name == "val_psnr" else 1e-4  # one gray level may differ
        assert _figures(together, name) == pytest.approx(_figures(alone, name), abs=tolerance), name
    assert _largest_difference(together, grown) == 0 and _figures(together, "loss") == _figures(grown, "loss")


def test_wrong_input_is_told_once(tmp_path: Path):
    write_faces(tmp_path)
    words = ("train-autoencoder", "--images", tmp_path / "faces", "--out", tmp_path / "out", "--batch-size", 1)
    ran = finish(spawn(*words, *SETTINGS, processes=2))
    assert ran.code != 0
    assert ran.err.count("batch_size 1 cannot be shared by 2 processes") == 1, ran.err
