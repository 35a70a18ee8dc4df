"""Joining the launched processes."""

from __future__ import annotations

from datetime import timedelta

from facesyn_cli import distributed as module


def test_those_that_are_done_wait_a_day_for_the_others(monkeypatch):
    seen, build = {}, module.Accelerator
    monkeypatch.setattr(module, "Accelerator", lambda **options: seen.update(options) or build(**options))
    module.processes("cpu")
    assert [handler.timeout for handler in seen["kwargs_handlers"]] == [timedelta(days=1)]
