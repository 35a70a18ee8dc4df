"""What a reader saw and did not use: counted by reason, said in one line, kept for the header.

The rule of every reader is that what it saw is what it used and what it reports.
"""

from __future__ import annotations

from collections import Counter

from facesyn_cli.artifacts.names import one_line
from facesyn_cli.console import log

_REASONS_SHOWN = 8
_MAX_REASONS = 50        # that are told apart: a set may have as many endings as files
_OTHERS = "of other kinds"


class LeftOut:
    """Counts by reason, with the first name of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that is not used.

        Args:
            reason: What it is, as a plural: `links`.
            name: Its name; the first one of each reason is shown.
            count: How many there are.
        """
        reason = one_line(reason)
        if reason not in self.counts and len(self.counts) >= _MAX_REASONS:
            reason = _OTHERS
        self.counts[reason] += count
        self._first.setdefault(reason, name)

    def say(self, where: object, used: int) -> None:
        """Warn in one line; say nothing where everything is used.

        Args:
            where: The set or file.
            used: Images that are used.
        """
        if not self.counts:
            return
        parts = [f"{count} {reason} (first {one_line(self._first[reason])!r})"
                 for reason, count in self.counts.most_common(_REASONS_SHOWN)]
        more = len(self.counts) - len(parts)
        tail = f" and {more} other kinds" if more else ""
        log.warning(f"{where}: {used} images are read; left out: {', '.join(parts)}{tail}")
