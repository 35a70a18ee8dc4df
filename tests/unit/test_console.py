"""The line of progress: items, rate, remaining time."""

from __future__ import annotations

import pytest

from facesyn_cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_remaining_time_are_of_this_run(clock: list[float]) -> None:
    counter = console.Progress(total=1000, unit="images", done=400)
    clock[0] += 10
    counter.advance(100, loss=0.51234)
    assert str(counter) == "500 of 1000 images, 10.0 images/s, 0:00:50 left, loss 0.5123"


def test_without_a_total_no_remaining_time_is_shown(clock: list[float]) -> None:
    counter = console.Progress(total=0, unit="bytes", done=0)
    clock[0] += 2
    counter.advance(100)
    assert str(counter) == "100 bytes, 50.0 bytes/s"


def test_a_log_gets_a_line_now_and_then(clock: list[float], said: list[str]) -> None:
    with console.progress("sample", 100) as counter:
        for _ in range(10):
            clock[0] += 10
            counter.advance(10)
    assert said == [f"sample: {done} of 100 images, 1.0 images/s, {left} left"
                    for done, left in ((30, "0:01:10"), (60, "0:00:40"), (90, "0:00:10"))]
