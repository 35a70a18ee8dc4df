"""A training with a time budget: its length, its learning rate, and what a stop in between keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tiny_ldm import train_arguments, write_faces

from facesyn_cli import signals
from facesyn_cli.training import trainer
from facesyn_cli.training.trainer import Trainer


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-minutes")
    write_faces(folder)
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that advances by one second with every step."""
    now = [0.0]
    take_step = Trainer._take_step

    def slow(self, batch, lr):
        take_step(self, batch, lr)
        now[0] += 1.0

    monkeypatch.setattr(Trainer, "_take_step", slow)
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    return now


def lines(out: Path, name: str) -> list[float]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in found if name in line]


def test_it_ends_when_the_minutes_are_over_and_the_learning_rate_follows(faces: Path, tmp_path: Path, run_cli, clock):
    more = ("minutes=0.1", "lr_schedule={name: cosine}", "optimizer.lr=1")
    plan = run_cli(*train_arguments(faces, tmp_path / "a", *more, steps=1000), "--dry-run", "--json").json()["plan"]
    assert plan["chosen"]["ends_after_minutes"] == 0.1
    ran = run_cli(*train_arguments(faces, tmp_path / "a", *more, steps=1000), "--json")
    assert ran.code == 0 and ran.json()["steps"] == 6, ran.err
    expected = [1.0, 0.933, 0.75, 0.5, 0.25, 0.067]  # half a cosine over six seconds
    assert lines(tmp_path / "a", "lr") == pytest.approx(expected, abs=1e-3)


def test_steps_end_it_where_they_come_first(faces: Path, tmp_path: Path, run_cli, clock):
    ran = run_cli(*train_arguments(faces, tmp_path / "a", "minutes=5", steps=3), "--json")
    assert ran.code == 0 and ran.json()["steps"] == 3


def test_seconds_before_a_stop_count_and_those_between_do_not(
    faces: Path, tmp_path: Path, run_cli, clock, monkeypatch
):
    out, more = tmp_path / "a", ("minutes=0.1", "lr_schedule.name=constant")
    asked = iter([None] * 3 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    assert run_cli(*train_arguments(faces, out, *more, steps=1000)).code == 143
    monkeypatch.setattr(signals, "received", lambda: None)
    clock[0] += 1000
    ran = run_cli(*train_arguments(faces, out, *more, steps=1000), "--json")
    assert ran.code == 0 and ran.json()["steps"] == 6, ran.err
    ran = run_cli(*train_arguments(faces, out, "minutes=0.15", "lr_schedule.name=constant", steps=1000), "--json")
    assert ran.code == 0 and ran.json()["steps"] == 9, "more minutes go on from there"


def test_other_minutes_are_refused_where_the_learning_rate_depends_on_them(
    faces: Path, tmp_path: Path, run_cli, assert_refused, clock
):
    more = ("lr_schedule={name: cosine}",)
    assert run_cli(*train_arguments(faces, tmp_path / "a", *more, "minutes=0.05", steps=1000)).code == 0
    assert_refused(*train_arguments(faces, tmp_path / "a", *more, "minutes=0.1", steps=1000),
                   says="was started with minutes=0.05; lr_schedule cosine depends on it")


def test_a_real_clock_ends_it_too(faces: Path, tmp_path: Path, run_cli):
    begun = time.monotonic()
    ran = run_cli(*train_arguments(faces, tmp_path / "a", "minutes=0.02", steps=1_000_000), "--json")
    assert ran.code == 0 and 0 < ran.json()["steps"] < 1_000_000 and time.monotonic() - begun >= 1.2
