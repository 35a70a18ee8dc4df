"""What a tracker shows is what metrics.jsonl says, also after a kill and when it is turned on late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facesyn_cli.errors import UserError
from facesyn_cli.training import metrics_log as module
from facesyn_cli.training.metrics_log import MetricsLog, check_trackers, known_trackers, read_lines

TENSORBOARD = ("tensorboard",)


@pytest.fixture(autouse=True)
def _one_process() -> None:
    PartialState(cpu=True)  # a stage has joined its processes before it opens a log


def _shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_numbers_are_shown_under_their_names(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl", trackers=TENSORBOARD) as metrics:
        metrics.add(1, loss=0.5, validation={"held-out": {"auc": 0.75, "note": "text"}}, is_last=True)
        metrics.add(2, loss=0.25)
        assert _shown(tmp_path)["loss"] == [(1, 0.5), (2, 0.25)]  # while the training runs
    assert _shown(tmp_path) == {"loss": [(1, 0.5), (2, 0.25)], "validation/held-out/auc": [(1, 0.75)]}


def test_steps_that_a_kill_has_undone_are_hidden(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl", trackers=TENSORBOARD) as metrics:
        for step in (1, 2, 3):
            metrics.add(step, loss=float(step))
    with MetricsLog(tmp_path / "metrics.jsonl", step=2, trackers=TENSORBOARD) as metrics:
        metrics.add(3, loss=30.0)
        metrics.add(4, loss=40.0)
    assert _shown(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [line["loss"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0, 40.0]


def test_turned_on_late_it_shows_what_was_before(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl") as metrics:
        metrics.add(1, loss=1.0)
        metrics.add(2, loss=2.0)
    assert not (tmp_path / "tensorboard").exists()
    with MetricsLog(tmp_path / "metrics.jsonl", step=1, trackers=TENSORBOARD) as metrics:
        metrics.add(2, loss=20.0)
    assert _shown(tmp_path)["loss"] == [(1, 1.0), (2, 20.0)]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


class _Recorder(GeneralTracker):
    """A tracker of a package that is not installed here; `runs` is what its server keeps."""

    requires_logging_directory = False
    runs: ClassVar[list[dict]] = []

    def __init__(self, run_name: str, **options: object) -> None:
        self.run = {"name": run_name, "options": options, "lines": [], "finished": False}

    @property
    def tracker(self) -> dict:
        return self.run

    def start(self) -> None:
        self.runs.append(self.run)

    def log(self, values: dict, step: int | None = None, **more: object) -> None:
        self.run["lines"].append((step, values))

    def finish(self) -> None:
        self.run["finished"] = True


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_trackers_of_accelerate_get_the_same_numbers(tmp_path: Path, monkeypatch, name: str):
    tracker = type("_Other", (_Recorder,), {"name": name, "runs": []})
    monkeypatch.setitem(module.LOGGER_TYPE_TO_CLASS, name, tracker)
    monkeypatch.setattr(GeneralTracker, "__init__", lambda self, _blank=False: None)
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, trackers=(name, "tensorboard"), run_name="facesyn-x") as metrics:
        metrics.add(1, loss=0.5, val={"auc": 0.75, "note": "text"})
        metrics.add(2, loss=0.25)
    if name == "wandb":
        (tmp_path / "wandb").mkdir()  # as the package does
    with MetricsLog(path, step=1, trackers=(name,), run_name="facesyn-x") as metrics:
        metrics.add(2, loss=0.25)
    first, second = tracker.runs
    assert first["name"] == "facesyn-x" and first["finished"] and second["finished"]
    assert first["lines"] == [(1, {"loss": 0.5, "val/auc": 0.75}), (2, {"loss": 0.25})]
    if name == "wandb":  # the run is resumed; W&B itself ignores steps that it has
        assert first["options"] == second["options"] and first["options"]["resume"] == "allow"
        assert second["lines"] == [(2, {"loss": 0.25})]
    else:  # a new run, which is complete
        assert second["lines"] == first["lines"]
    assert _shown(tmp_path)["loss"] == [(1, 0.5), (2, 0.25)]


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    check_trackers(())
    with pytest.raises(UserError, match=r'tracking=tensorboard .* pip install "facesyn\[tracking\]"'):
        check_trackers(TENSORBOARD)
    with pytest.raises(UserError, match=r'tracking=wandb .* pip install "wandb"'):
        check_trackers(("wandb",))
    assert {"tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml"} <= set(known_trackers())
