"""Messages: on stderr and, where wanted, in a log file; from the first process only.

It is at the bottom of the import order, so every package can use it. Only `cli` prints to stdout.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from facesyn_cli import display
from facesyn_cli.errors import UserError

log = logging.getLogger("facesyn")


def is_first_process() -> bool:
    """True in the process that prints: global rank 0 of several, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def configure() -> None:
    """Send messages of level INFO and above to stderr, and to no file."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name can hold bytes that are no text
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # the reader of an image reports problems
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    to_stderr = _ToStderr(sys.stderr)
    to_stderr.setFormatter(_LevelFormatter(display.has_color(sys.stderr)))
    log.addHandler(to_stderr)


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Choose which messages are shown, after `configure`.

    Args:
        quiet: Show only warnings and errors on stderr, and no progress; a log file still gets everything.
        verbose: Show debug messages too, on stderr and in a log file.

    Raises:
        UserError: Both are wanted, by this call or by an earlier one.
    """
    if quiet or is_quiet():
        if verbose or log.level == logging.DEBUG:
            raise UserError("--quiet and --verbose exclude each other; give one of them")
        for handler in log.handlers:
            if isinstance(handler, _ToStderr):
                handler.setLevel(logging.WARNING)
    if verbose and is_first_process():
        log.setLevel(logging.DEBUG)


def is_quiet() -> bool:
    """Return whether stderr gets only warnings and errors."""
    return any(isinstance(handler, _ToStderr) and handler.level > logging.INFO for handler in log.handlers)


def is_redrawn() -> bool:
    """Return whether this process shows progress that is redrawn: the first one, on a terminal, not quiet."""
    return is_first_process() and not is_quiet() and display.can_redraw()


def log_to(path: Path) -> None:
    """Also write messages to a file, with times.

    Raises:
        UserError: It cannot be written.
    """
    if not is_first_process():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"cannot write the log file {path}: {error.strerror}") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(to_file)


class _ToStderr(logging.StreamHandler):
    """Writes messages to stderr, above the progress where some is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        if not display.write_line(self.format(record)):
            super().emit(record)


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
    """Puts the level before debug messages, warnings and errors, in color where wanted; not before other messages."""

    _COLORS = {logging.WARNING: "33", logging.ERROR: "1;31", logging.DEBUG: "2"}  # yellow, bold red, dim

    def __init__(self, has_color: bool) -> None:
        super().__init__()
        self._has_color = has_color

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return text
        level, color = f"{record.levelname.lower()}:", self._COLORS.get(record.levelno)
        return f"\x1b[{color}m{level}\x1b[0m {text}" if self._has_color and color else f"{level} {text}"
