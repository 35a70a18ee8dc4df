"""`accelerate launch --cpu --num_processes N` really gives N processes, and their exit codes and signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from facesyn_cli.cli import launch
from facesyn_cli.data.drawn_faces import draw_face
from facesyn_cli.data.pixels import encode_png

pytestmark = pytest.mark.dist

WORKER = """
import atexit, json, sys
import torch
atexit.register(lambda: open(sys.argv[1] + f"/left-{group.index}", "w").write(str(torch.distributed.is_initialized())))
from facesyn_cli.training.processes import processes
group = processes("cpu")
told = group.any(group.index == 1)
total = int(group.sum(torch.tensor([float(group.index + 1)])).item())
open(sys.argv[1] + f"/{group.index}.json", "w").write(json.dumps([group.count, told, total]))
"""


def test_the_number_is_read_off_the_launcher() -> None:
    accelerate = ["python", "-m", "accelerate.commands.launch", "--cpu"]
    assert launch._number_in([*accelerate, "--num_processes", "3", "-m", "facesyn_cli"]) == 3
    assert launch._number_in([*accelerate, "--num_processes=2", "-m", "facesyn_cli"]) == 2
    assert launch._number_in([*accelerate, "-m", "facesyn_cli", "x", "--num_processes", "5"]) == 1
    assert launch._number_in([]) == 1


def test_nothing_is_started_outside_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launch.asked_processes() == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch, "_parent_command", lambda: ["accelerate", "launch", "--num_processes", "4"])
    assert launch.asked_processes() == 4
    monkeypatch.setenv("RANK", "0")
    assert launch.asked_processes() == 1


def test_two_workers_form_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    real = subprocess.Popen

    def popen(command: list[str], env: dict) -> subprocess.Popen:
        assert command[1:3] == ["-m", "facesyn_cli"]
        return real([sys.executable, str(script), str(tmp_path)], env=env)

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    monkeypatch.setattr(launch.signal, "signal", lambda *a: None)
    assert launch.run_workers([], 2) == 0
    assert [json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1)] == [[2, True, 3]] * 2
    assert [(tmp_path / f"left-{i}").read_text() for i in (0, 1)] == ["False"] * 2, "the group outlives its processes"


def test_the_launched_command_runs_in_two_and_speaks_once(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").write_bytes(encode_png(draw_face(0, "a", "0")))
    ran = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "facesyn_cli",
         "embed", "--images", tmp_path / "faces", "--weights", tmp_path / "none.pth"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "ACCELERATE_DISABLE_RICH": "1"},
    )
    assert ran.returncode != 0
    assert len([line for line in ran.stderr.splitlines() if line.startswith("error: ")]) == 1, ran.stderr
    assert "none.pth" in ran.stderr

