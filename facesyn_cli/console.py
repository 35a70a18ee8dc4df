"""Messages and progress bars, both on stderr and from the first process only.

It is at the bottom of the import order, so every package can use it. Only `cli` prints to stdout.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from facesyn_cli.errors import UserError

LINE_SECONDS = 30  # between two lines of progress
log = logging.getLogger("facesyn")


def is_first_process() -> bool:
    """True in the process that prints: global rank 0 of several, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def configure(log_file: Path | None = None) -> None:
    """Send messages of level INFO and above to stderr, and to `log_file` with times when given.

    Raises:
        UserError: `log_file` cannot be written.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name can hold bytes that are no text
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # the reader of an image reports problems
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
    """Counts finished items; made by `progress`.

    Args:
        total: Number of items, including those of earlier runs; 0: not known.
        unit: Name of the items.
        done: Items of earlier runs; the rate does not include them.
    """

    def __init__(self, total: int, unit: str, done: int) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.show: Callable[[Progress], None] = lambda progress: None
        self._first, self._start = done, time.monotonic()
        self._info: dict[str, float | str] = {}

    def advance(self, count: int = 1, **info: float | str) -> None:
        """Count more finished items; `info` is shown beside them."""
        self.done += count
        self._info = info
        self.show(self)

    def __str__(self) -> str:
        """Return one line: items, rate, remaining time, info."""
        rate = (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self.done} of {self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"]
        parts.append(f"{rate:.1f} {self.unit}/s")
        if self.total and rate > 0:
            parts.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self._info.items()]
        return ", ".join(parts)


@contextmanager
def progress(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Progress]:
    """Show rate and remaining time: a bar on a terminal, otherwise a line at most every 30 seconds.

    Args:
        title: Name of the work, for example of the command.
        total: As of `Progress`.
        unit: As of `Progress`.
        done: As of `Progress`.
    """
    counter = Progress(total, unit, done)
    if not is_first_process():
        yield counter
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total or None, completed=done, line="")
            counter.show = lambda counter: bar.update(task, completed=counter.done, line=str(counter))
            yield counter
    else:
        last = time.monotonic()

        def log_line(counter: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                log.info(f"{title}: {counter}")

        counter.show = log_line
        yield counter


class _LogFile(logging.FileHandler):
    """A log file that is closed with one warning when it cannot be written, for example on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        log.removeHandler(self)
        error = sys.exc_info()[1]
        self.close()
        log.warning(f"the log file {self.baseFilename} is closed: {error.strerror or error}")

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            pass  # reported when a line could not be written


class _LevelFormatter(logging.Formatter):
    """Puts the level before warnings and errors, not before other messages."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
