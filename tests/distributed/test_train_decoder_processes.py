"""train-decoder in two processes learns what one process learns, and resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import finish, spawn
from tiny_decoder import all_losses, train_arguments, write_run

from facesyn_cli.artifacts.weights import read_tensors

pytestmark = pytest.mark.dist


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    work = write_run(tmp_path / "work")
    more = (*all_losses(work), "optimizer.eps=0.001", "features_coarsest=0.8", "adversarial.start=1")
    outs = {name: tmp_path / name for name in ("alone", "together", "grown")}
    for name, steps, processes in (("alone", 5, 1), ("together", 5, 2), ("grown", 2, 2), ("grown", 5, 2)):
        ran = finish(spawn(*train_arguments(work, outs[name], *more, "batch_size=5", steps=steps), processes=processes))
        assert ran.code == 0, ran.err
    weights = {name: read_tensors(out / "model.safetensors") for name, out in outs.items()}
    drawn = [read_tensors(out / "drawn.safetensors")["latents"] for out in outs.values()]
    assert all(torch.equal(drawn[0], latents) for latents in drawn)
    assert all((value - weights["together"][key]).abs().max() < 1e-5 for key, value in weights["alone"].items())
    assert all(torch.equal(value, weights["grown"][key]) for key, value in weights["together"].items())
    lines = {name: [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
             for name, out in outs.items()}
    for figure in ("loss", "drawn_identity", "identity", "discriminator"):
        assert [line[figure] for line in lines["together"]] == pytest.approx(
            [line[figure] for line in lines["alone"]], abs=1e-4), figure
