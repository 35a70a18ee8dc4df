"""train-ldm in two processes learns what one process learns, and resumes: bit for bit, or on another number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import finish, spawn
from tiny_ldm import train_arguments, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist

# eps keeps Adam from blowing rounding up where the gradient is next to zero
MORE = ("optimizer.eps=0.001", "validate_every=4", "checkpoint_every=4", "context_dropout=0.3")


def _largest_difference(first: Path, second: Path) -> float:
    a, b = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def _figures(out: Path, *names: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines for name in names if name in line]


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    write_faces(tmp_path)
    judge = write_recognizer(tmp_path / "judge")
    more = (*MORE, f"judge={judge}", "judge_every=4", "judge_identities=4", "judge_images=12", "judge_steps=2")
    alone, together, grown, elastic = (tmp_path / name for name in ("alone", "together", "grown", "elastic"))
    runs = [(alone, 8, 1), (together, 8, 2), (grown, 5, 2), (grown, 8, 2), (elastic, 3, 2), (elastic, 5, 1)]
    for out, steps, processes in (*runs, (elastic, 8, 2)):
        ran = finish(spawn(*train_arguments(tmp_path, out, *more, steps=steps), "--json", processes=processes))
        assert ran.code == 0, ran.err
        assert ("2 processes" in ran.err) == (processes == 2)
        summary = json.loads(ran.out)  # one document: only the first process prints
        assert summary["steps"] == steps
        assert ran.err.count("images to train on") == 1, ran.err
    assert _largest_difference(alone, together) < 1e-5
    assert _largest_difference(elastic, together) < 1e-5
    parts = json.loads((elastic / "facesyn.json").read_text())["extra"]["parts"]
    assert [(part["from_step"], part["processes"]) for part in parts] == [(0, 2), (3, 1), (5, 2)]
    # of previews one gray level may differ
    for names, tolerance in ((("loss", "val_loss"), 1e-5), (("consistency", "to_photo", "to_other"), 5e-3)):
        figures = _figures(together, *names)
        assert figures == [(step, pytest.approx(value, abs=tolerance)) for step, value in _figures(alone, *names)]
    assert [step for step, _ in _figures(together, "nearest")] == [4, 8]
    assert _largest_difference(together, grown) == 0
    assert "parts" not in json.loads((grown / "facesyn.json").read_text())["extra"]
    cache = {path.name: path.read_bytes() for path in (alone / "latents").rglob("part-*.npy")}
    assert cache == {path.name: path.read_bytes() for path in (together / "latents").rglob("part-*.npy")}


def test_wrong_input_is_told_once(tmp_path: Path):
    write_faces(tmp_path)
    ran = finish(spawn(*train_arguments(tmp_path, tmp_path / "ldm"), "denoiser.in_channels=4", processes=2))
    assert ran.code != 0
    assert ran.err.count("set denoiser.in_channels=3") == 1, ran.err


def test_an_unreadable_image_is_an_error_in_all_processes_and_reported_once(tmp_path: Path):
    write_faces(tmp_path)
    (tmp_path / "faces" / "p4" / "3.png").write_bytes(b"no image")
    for latents in ("cache", "fly"):  # met while the cache is filled, and while training
        more = (f"latents={latents}", "latent_statistics=identity", "validation_fraction=0")
        ran = finish(spawn(*train_arguments(tmp_path, tmp_path / latents, *more), processes=2))
        assert ran.code != 0
        assert ran.err.count("p4/3.png") == 1, ran.err
