"""Exceptions that end a command with an exit code and without a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONG = 400
_MOST_LISTED = 30
_LONG_WORD = re.compile(rf"\S{{{_LONG + 1},}}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """An error that the user can fix: shown as one message without a traceback, exit code 2.

    The message states the problem, its place and what was expected. Quoted file content is sanitized: words of more
    than `_LONG` characters are shortened; line breaks and control characters are escaped.

    Args:
        lines: The message; further lines hold a table or advice.
    """

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    @classmethod
    def of(cls, message: str) -> UserError:
        """Return an error with the whole message of another one, of one or several lines."""
        return cls(*message.split("\n"))

    def __str__(self) -> str:
        return "\n".join(_sanitized(str(line)) for line in self.args)


def _sanitized(line: str) -> str:
    text = _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode("ascii"), line)
    return _LONG_WORD.sub(lambda m: f"{m[0][:_LONG // 4]}[...]{m[0][-_LONG // 4:]}", text)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the closest known one, or all where none is close."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    if near:
        return f", did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if known and len(known) <= _MOST_LISTED else ""


def first_line(error: Exception) -> str:
    """Return the start of the message of another library's error, to quote in one of ours."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


class Stopped(Exception):
    """Raised after a stop signal, when the process has saved its work.

    Args:
        signum: Number of the signal; the exit code is 128 + signum, as shells expect.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}; run the same command again to resume")
        self.signum = signum
        self.exit_code = 128 + signum
