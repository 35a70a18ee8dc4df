"""What a tracker shows is what metrics.jsonl says, also after a kill and when it is turned on late."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from facesyn_cli.errors import UserError
from facesyn_cli.training import tracking
from facesyn_cli.training.metrics_log import MetricsLog, read_lines
from facesyn_cli.training.tracking import TrackingSettings

TENSORBOARD = TrackingSettings(name="tensorboard")


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
    with MetricsLog(tmp_path / "metrics.jsonl", tracking=TENSORBOARD) as metrics:
        metrics.add(1, loss=0.5, validation={"held-out": {"auc": 0.75, "note": "text"}}, is_last=True)
        metrics.add(2, loss=0.25)
        assert _shown(tmp_path)["loss"] == [(1, 0.5), (2, 0.25)]  # while the training runs
    assert _shown(tmp_path) == {"loss": [(1, 0.5), (2, 0.25)], "validation/held-out/auc": [(1, 0.75)]}


def test_steps_that_a_kill_has_undone_are_hidden(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl", tracking=TENSORBOARD) as metrics:
        for step in (1, 2, 3):
            metrics.add(step, loss=float(step))
    with MetricsLog(tmp_path / "metrics.jsonl", step=2, tracking=TENSORBOARD) as metrics:
        metrics.add(3, loss=30.0)
        metrics.add(4, loss=40.0)
    assert _shown(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [line["loss"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0, 40.0]


def test_turned_on_late_it_shows_what_was_before(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl") as metrics:
        metrics.add(1, loss=1.0)
        metrics.add(2, loss=2.0)
    assert not (tmp_path / "tensorboard").exists()
    with MetricsLog(tmp_path / "metrics.jsonl", step=1, tracking=TENSORBOARD) as metrics:
        metrics.add(2, loss=20.0)
    assert _shown(tmp_path)["loss"] == [(1, 1.0), (2, 20.0)]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    TrackingSettings().check()
    with pytest.raises(UserError, match=r'tracking.name=tensorboard .* pip install "facesyn\[tracking\]"'):
        TENSORBOARD.check()
