"""`facesyn bench scale`: every stage in its order, resumption, growth, and the process that measures another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from facesyn_cli.bench import measured_process, scale_bench
from facesyn_cli.bench.scale_bench import _exponent, _with_growth

ROW = {"of": "images", "processor s": 1.0, "processor s/1,000": 1.0, "wall s": 1.0, "peak memory MiB": 1.0}
TINY = ("sizes=[8]", "per_id=4", "device=cpu", "rounds=1")


def test_every_stage_runs_once(run_cli, monkeypatch, tmp_path) -> None:
    measured = []

    def measure(step: scale_bench._Step, logs: Path) -> dict:
        more = ("epochs=1", "batch_size=4", "norm_batch_size=4") if step.stop_at else ()
        ran = run_cli(*step.command, *more)
        assert ran.code == 0, f"{step.name}: {ran.err}"
        assert (step.folder / "facesyn.json").is_file()
        assert step.stop_at is None or step.stop_at.stat().st_size
        measured.append(step)
        return {**ROW, "count": step.count}

    monkeypatch.setattr(scale_bench, "_measure", measure)
    ran = run_cli("bench", "scale", *TINY, f"folder={tmp_path}", "--json")
    assert ran.code == 0, ran.err
    names = [step.name for step in measured]
    rows = ran.json()["runs"]
    assert [row["name"] for row in rows] == [step.name for step in measured if step.is_shown]
    assert {name.split(",")[0] for name in names} == {
        "gen-contexts", "sample", "augment", "pack", "train-fr", "embed", "report"
    }
    counts = {step.name: step.count for step in measured}
    assert counts["sample, layout=tar"] == 8 and counts["pack"] == 16

    lines = (tmp_path / "scale.jsonl").read_text().splitlines()
    (tmp_path / "scale.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as after a kill in the last stage
    again = run_cli("bench", "scale", *TINY, f"folder={tmp_path}")
    assert again.code == 0 and [step.name for step in measured] == [*names, names[-1]]
    assert "processor s/1,000" in again.out


def test_growth_does_not_depend_on_what_a_stage_costs_without_images() -> None:
    for p in (1.0, 2.0):
        points = [(n, 40 + 3e-4 * n**p) for n in (10, 100, 1000)]
        assert _exponent(points) == pytest.approx(p, abs=0.01)
    assert _exponent([(10, 5.0), (100, 50.0)]) == pytest.approx(1)
    assert _exponent([(10, 5.0), (100, 5.0), (1000, 5.0)]) is None
    rows = _with_growth([
        {"name": "pack", "count": n, "processor s": 2 + n, "peak memory MiB": 7.0} for n in (10, 100, 1000)
    ])
    assert rows[2]["growth of time"] == 1 and rows[2]["growth of memory"] is None
    assert "growth of time" not in rows[1]


def test_the_memory_of_a_command_is_its_own(tmp_path) -> None:
    ballast = bytearray(b"x" * (300 << 20))  # of this process, which the command must not inherit
    result = tmp_path / "usage.json"
    script = "data = b'x' * (100 << 20); raise SystemExit(3)"
    words = [str(result), "", sys.executable, "-I", "-c", script]
    subprocess.run([sys.executable, "-I", measured_process.__file__, *words])
    usage = json.loads(result.read_text())
    assert usage["code"] == 3 and 100 < usage["peak MiB"] < 200 and usage["processor s"] > 0
    assert len(ballast)


def test_a_command_is_stopped_when_a_file_has_content(tmp_path) -> None:
    result, sign = tmp_path / "usage.json", tmp_path / "sign"
    script = f"import time; open({str(sign)!r}, 'w').write('x'); time.sleep(100)"
    words = [str(result), str(sign), sys.executable, "-I", "-c", script]
    subprocess.run([sys.executable, "-I", measured_process.__file__, *words], timeout=60)
    assert json.loads(result.read_text())["code"] == -15
