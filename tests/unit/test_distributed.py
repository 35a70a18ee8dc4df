"""Joining the launched processes, and what one process does for all; with real ones: tests/distributed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from facesyn_cli import distributed as module
from facesyn_cli.distributed import CollectiveError, Processes, processes
from facesyn_cli.errors import Stopped, UserError


def test_those_that_are_done_wait_a_day_for_the_others(monkeypatch):
    seen, build = {}, module.Accelerator
    monkeypatch.setattr(module, "Accelerator", lambda **options: seen.update(options) or build(**options))
    module.processes("cpu")
    assert [handler.timeout for handler in seen["kwargs_handlers"]] == [timedelta(days=1)]


class OfTwo(Processes):
    """One of two processes, which share a list in place of a connection."""

    def __init__(self, rank: int, sent: list) -> None:
        super().__init__(processes("cpu").accelerator)
        self.rank, self.world_size, self.is_first, self.sent = rank, 2, rank == 0, sent

    def broadcast(self, value):
        self.sent += [value] if self.is_first else []
        return self.sent[0]


def both(compute) -> list:
    """Return what each of two processes gets from the first, a value or an error."""
    sent, found = [], []
    for rank in (0, 1):
        try:
            found.append(OfTwo(rank, sent).from_first(compute))
        except (UserError, Stopped) as error:
            found.append(error)
    return found


def test_a_value_an_error_and_a_stop_signal_of_the_first_reach_all() -> None:
    calls: list[int] = []
    assert both(lambda: calls.append(1) or "done") == ["done", "done"] and len(calls) == 1

    def fail() -> None:
        raise UserError("no space left")

    def stop() -> None:
        raise Stopped(10)

    assert [(type(error), str(error)) for error in both(fail)] == 2 * [(CollectiveError, "no space left")]
    assert [error.exit_code for error in both(stop)] == [138, 138]


def test_the_first_problem_in_the_order_of_the_work_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    group = OfTwo(0, [])
    monkeypatch.setattr(group, "any", lambda flag: True)
    found = [(9, 0, "at 9"), (0, 1, ""), (4, 2, "at 4"), (4, 3, "x")]
    monkeypatch.setattr(group, "gather_objects", lambda value: found)
    with pytest.raises(CollectiveError, match="^at 4$"):
        group.raise_in_all("at 9", 9)
