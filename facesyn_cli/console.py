"""What a user sees while a command works: messages and progress, both on stderr.

Lies beside `errors` at the very right of the import order, so that every package may report. Only the
first process of several speaks; data for other programs goes to stdout and is printed by `cli` alone.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facesyn_cli.errors import UserError

log = logging.getLogger("facesyn")


def is_first_process() -> bool:
    """True in the process that speaks: global rank 0 of a launched group, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def configure(log_file: Path | None = None) -> None:
    """Send messages of level INFO and above to stderr, and to `log_file` with times when given.

    Raises:
        UserError: `log_file` cannot be written.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal, or a file name, may know other letters
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it finds odd in an image is said by its reader
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(_LevelFormatter())
    log.addHandler(to_stderr)
    if log_file is not None and is_first_process():
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            to_file = _LogFile(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write the log file {log_file}: {error.strerror}") from error
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(to_file)


class Progress:
    """Counts finished items; made by `progress`."""

    def __init__(self, total: int, unit: str, show) -> None:
        self.total, self.unit = total, unit
        self.done = 0
        self._show = show

    def advance(self, count: int = 1, **info: float | str) -> None:
        """Report `count` more finished items and optional values to show beside them."""
        self.done += count
        self._show(self.done, info)


@contextmanager
def progress(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Progress]:
    """Show a bar with rate and time left on a terminal, else a plain line at most every 30 seconds.

    Args:
        title: What is being done, for example the name of the command.
        total: Number of items to finish, those of earlier runs included.
        unit: What one item is called.
        done: Items already finished by an earlier run; they do not count in the rate.
    """
    if not is_first_process():
        yield Progress(total, unit, lambda done, info: None)
        return
    show_bar = sys.stderr.isatty()
    with _bar(title, total, unit, done) if show_bar else _lines(title, total, unit, done) as show:
        bar = Progress(total, unit, show)
        bar.done = done
        yield bar


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[info]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", info="")
        start = time.monotonic()

        def show(count: int, info: dict) -> None:
            rate = (count - done) / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=count, rate=f"{rate:.1f} {unit}/s", info=_render(info))

        yield show


@contextmanager
def _lines(title: str, total: int, unit: str, done: int) -> Iterator:
    start = last = time.monotonic()

    def show(count: int, info: dict) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 30:
            return
        last = now
        rate = (count - done) / (now - start)
        left = (total - count) / rate if rate > 0 else float("inf")
        log.info(f"{title}: {count} of {total} {unit}, {rate:.1f} {unit}/s, {left:.0f} s left {_render(info)}".rstrip())

    yield show


def _render(info: dict) -> str:
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items())


class _LogFile(logging.FileHandler):
    """A log file that is given up with one line when it cannot be written, for example on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        log.removeHandler(self)
        error = sys.exc_info()[1]
        self.close()
        log.warning(f"the log file {self.baseFilename} is given up: {error.strerror or error}")

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            pass  # said when a line could not be written


class _LevelFormatter(logging.Formatter):
    """`error: ...` and `warning: ...` carry their level; ordinary messages stand alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
