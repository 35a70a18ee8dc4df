"""Messages: what goes to stderr and to a log file, with and without color."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli import console
from facesyn_cli.errors import UserError


@pytest.fixture(autouse=True)
def _no_handlers_are_left():
    yield
    for handler in console.log.handlers:
        handler.close()
    console.log.handlers.clear()


def say_all() -> None:
    for level in ("debug", "info", "warning", "error"):
        getattr(console.log, level)(f"one {level}")


@pytest.mark.parametrize(
    ("quiet", "verbose", "expected"),
    [
        (False, False, ["one info", "warning: one warning", "error: one error"]),
        (True, False, ["warning: one warning", "error: one error"]),
        (False, True, ["debug: one debug", "one info", "warning: one warning", "error: one error"]),
    ],
)
def test_verbosity(quiet: bool, verbose: bool, expected: list[str], capfd, tmp_path: Path) -> None:
    console.configure()
    console.set_verbosity(quiet, verbose)
    console.log_to(tmp_path / "logs" / "run.txt")
    say_all()
    assert capfd.readouterr().err.splitlines() == expected
    logged = [line.split(" ", 2)[2] for line in (tmp_path / "logs" / "run.txt").read_text().splitlines()]
    assert logged == ["DEBUG one debug"] * verbose + ["INFO one info", "WARNING one warning", "ERROR one error"]


def test_quiet_and_verbose_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        console.set_verbosity(quiet=True, verbose=True)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "error: no"), ({"FORCE_COLOR": "1"}, "\x1b[1;31merror:\x1b[0m no"),
     ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "error: no")],
)
def test_color_in_a_pipe_only_on_demand(variables: dict[str, str], expected: str, capfd, monkeypatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console.configure()
    console.log.error("no")
    assert capfd.readouterr().err == f"{expected}\n"
