"""The list of stages: states, times, what each stage made, and a terminal that is too low or has no UTF-8."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import FixedConfig, open_output
from facesyn_cli.artifacts.work import FOLDERS, OUTPUTS, Work
from facesyn_cli.errors import Stopped, UserError
from facesyn_cli.pipelines import stage_list
from facesyn_cli.pipelines.stage_list import Step, run_steps


@dataclass
class Stages:
    """Stands for `run_stage`: every stage writes 4 images in 90 seconds, except those named in `errors`."""

    now: float
    errors: dict[str, BaseException]
    ran: list[str]

    def __call__(self, name: str, cfg: Any, work: Work) -> Outcome:
        self.ran.append(name)
        self.now += 90
        if name in self.errors:
            raise self.errors[name]
        folder = work.folder(OUTPUTS[name])
        with open_output(folder, "ImageSet", name, FixedConfig({}), {}) as output:
            if not output.finished:
                output.finish({"per_id": 2, "identities": 2, "images": 4})
        return Outcome(folder, {"images": 4})


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    made = Stages(0.0, {}, [])
    monkeypatch.setattr(stage_list, "run_stage", made)
    monkeypatch.setattr(stage_list.time, "monotonic", lambda: made.now)
    return made


def step(name: str, reason: str = "") -> Step:
    return Step(name, name, None if reason else SimpleNamespace(out=None), reason)


STEPS = [step("embed", "the tree holds it"), step("sample"), step("pack")]


def test_states_times_and_what_was_made(stages: Stages, tmp_path: Path, said: list[str]) -> None:
    work = Work(tmp_path)
    first = run_steps(STEPS, work)
    made = {"images": 4, "folder": str(tmp_path / FOLDERS["samples"]), "state": "done", "seconds": 90.0}
    assert first["sample"] == made and first["embed"] == {"state": "skipped", "reason": "the tree holds it"}
    assert said[:2] == ["[1/2] sample", "[2/2] pack"]
    table = said[-1].encode("ascii", "replace").decode().splitlines()
    assert [line.split(None, 1)[1] for line in table[1:]] == [
        "embed   skipped           the tree holds it", "sample  done        1:30  4 images, 2 identities",
        "pack    done        1:30  4 images, 2 identities",
    ]
    (tmp_path / FOLDERS["records"] / "facesyn.json").unlink()
    again = run_steps(STEPS, work)
    assert again["sample"]["state"] == "done earlier" and again["pack"]["state"] == "done"
    assert "sample  done     earlier  4 images, 2 identities" in said[-1]


@pytest.mark.parametrize(("error", "state"), [(UserError("no"), "failed"), (Stopped(2), "stopped")])
def test_the_list_is_logged_after_an_error_too(
    stages: Stages, tmp_path: Path, said: list[str], error: BaseException, state: str
) -> None:
    stages.errors["sample"] = error
    with pytest.raises(type(error)):
        run_steps(STEPS, Work(tmp_path))
    assert stages.ran == ["sample"]
    assert f"sample  {state:7}     1:30" in said[-1] and said[-1].endswith("pack    waiting")


def test_a_finished_stage_is_shown_as_such_before_it_runs(stages: Stages, tmp_path: Path) -> None:
    run_steps(STEPS, Work(tmp_path))
    rows = [stage_list._Row.of(one, Work(tmp_path)) for one in [*STEPS, step("train-fr")]]
    assert [row.state for row in rows] == ["skipped", "done earlier", "done earlier", "waiting"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_running_stage_is_in_sight_on_a_low_terminal_of_any_encoding(
    encoding: str, stages: Stages, tmp_path: Path
) -> None:
    rows = [stage_list._Row(step(name), None, "done") for name in OUTPUTS]
    next(row for row in rows if row.step.title == "pack").state = "running"
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    screen = Console(file=file, width=30, height=8, force_terminal=True, no_color=True)
    screen.print(stage_list._List(rows))
    file.flush()
    lines = Text.from_ansi(file.buffer.getvalue().decode(encoding)).plain.splitlines()
    assert len(lines) == 4 and any("pack" in line and "running" in line for line in lines)
    assert max(map(len, lines)) <= 30
