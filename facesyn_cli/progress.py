"""Progress of a stage: how much is finished, the time left, the recent rate, and what a person watches.

    with progress("train-fr", total=5000, unit="steps") as bar:
        bar.advance(1, loss=0.51, lr=0.02)

On a terminal this is one line that is redrawn, otherwise a line in the log at most every 30 seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from facesyn_cli import console, display

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

LINE_SECONDS = 30     # between two lines of progress in a log
WINDOW_SECONDS = 30   # the rate is of this time
_MARK_SECONDS = 0.25  # between two points in time that the rate is computed from
_MEMORY_SECONDS = 1   # between two looks at the memory of the GPU
_BAR = (6, 40)        # columns of the bar, at least and at most


class Progress:
    """Counts finished items; made by `progress`.

    The rate is recent: of the last `WINDOW_SECONDS` seconds before the last finished item, or of the last two items
    where they take longer. Items of earlier runs do not count, nor does the time before the first item as soon as
    there is a second one: a slow start, for example a compilation, does not lengthen the time left. Neither does the
    time in `paused`.

    Args:
        total: Number of items, including those of earlier runs; 0: not known.
        unit: Name of the items.
        done: Items of earlier runs.
        title: Name of the work.
    """

    def __init__(self, total: int, unit: str, done: int, title: str = "") -> None:
        self.total, self.unit, self.done, self.title = total, unit, done, title
        self.show: Callable[[Progress], None] | None = None
        self._begin, self._first = time.monotonic(), done
        self._marks = [(self._begin, done)]       # (time, items), the first one at the start of the window
        self._has_started = False                 # the time before the first item is no longer in the window
        self._info: dict[str, float | str] = {}
        self._memory, self._looked = "", -float("inf")

    def advance(self, count: int = 1, **info: float | str) -> None:
        """Count more finished items; `info` is shown beside them, the most important first, until it is replaced."""
        now = time.monotonic()
        self.done += count
        self._info |= info
        if count:
            self._mark(now)
        if self.show is not None:
            if now - self._looked >= _MEMORY_SECONDS:
                self._memory, self._looked = _gpu_memory(), now
            self.show(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time in the block out of the rate, for example that of a validation between two steps."""
        begin = time.monotonic()
        try:
            yield
        finally:
            lost = time.monotonic() - begin
            self._marks = [(when + lost, done) for when, done in self._marks]

    @property
    def _is_finished(self) -> bool:
        return 0 < self.total <= self.done

    @property
    def rate(self) -> float:
        """Items per second, at the end of this whole run; 0 while none is finished."""
        start, before = (self._begin, self._first) if self._is_finished else self._marks[0]
        end, done = self._marks[-1]
        return (done - before) / max(end - start, 1e-9) if done > before else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all items are finished; None: not known."""
        return (self.total - self.done) / self.rate if self.total and self.rate > 0 else None

    def parts(self, is_short: bool = False) -> list[str]:
        """Return what is known, the most important first: items, time, rate, info, memory of the GPU.

        Args:
            is_short: For a terminal, where the rate is given without its unit.
        """
        of, unit = "/" if is_short else " of ", self.unit
        show, unit = (str, unit) if unit != "bytes" else (_mebibytes, "MiB")
        parts = [f"{show(self.done)}{of}{show(self.total)} {unit}" if self.total else f"{show(self.done)} {unit}"]
        if self._is_finished:
            parts.append(f"took {format_seconds(self._marks[-1][0] - self._begin)}")
        elif self.seconds_left is not None:
            parts.append(f"{format_seconds(self.seconds_left)} left")
        rate = self.rate if unit == self.unit else self.rate / 2**20
        if rate > 0:
            parts.append(f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}")
            parts[-1] += "/s" if is_short else f" {unit}/s"
        for key, value in self._info.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{key.replace('_', ' ')} {shown}")
        return [*parts, self._memory] if self._memory else parts

    def __str__(self) -> str:
        """Return one line for a log."""
        return ", ".join(self.parts())

    def fit(self, width: int) -> tuple[int, str]:
        """Return the columns of the bar, 0 for none, and the text after it, which fit a terminal beside the title.

        Where there is not enough room the bar shrinks first; then the last parts are left out, and then the bar.
        """
        parts = self.parts(is_short=True)
        shortest, longest = _BAR
        while True:
            room = width - len(self.title) - 2 - len(", ".join(parts))
            if room >= shortest or len(parts) == 1:
                break
            parts.pop()
        return (min(room, longest) if room >= shortest else 0), ", ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the line on a terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        columns, text = self.fit(options.max_width)
        line = Table.grid(padding=(0, 1, 0, 0))
        cells = [Text(self.title, style="bold", no_wrap=True), Text(text, no_wrap=True, overflow="crop")]
        if columns:
            done = self.done if self.total else 0
            styles = {"style": "dim", "complete_style": "cyan", "finished_style": "green"}
            cells.insert(1, ProgressBar(self.total or None, done, width=columns, **styles))
        line.add_row(*cells)
        yield line

    def _mark(self, now: float) -> None:
        """Add a point in time to the window, and drop the points before the window."""
        marks = self._marks
        if not self._has_started and len(marks) == 2:
            del marks[0]
            self._has_started = True
        if len(marks) > 2 and now - marks[-2][0] < _MARK_SECONDS:
            marks[-1] = (now, self.done)
        else:
            marks.append((now, self.done))
        while len(marks) > 2 and marks[1][0] <= now - WINDOW_SECONDS:
            del marks[0]


@contextmanager
def progress(title: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Progress]:
    """Show the progress of some work in the first process: a line on a terminal that is redrawn, otherwise log lines.

    Args:
        title: Name of the work, for example of the command.
        total: As of `Progress`.
        unit: As of `Progress`.
        done: As of `Progress`.
    """
    counter = Progress(total, unit, done, title)
    if console.is_redrawn():
        counter.show = lambda counter: None  # it is redrawn at regular times
        with display.shown(counter, is_kept=True):
            yield counter
    elif not console.is_first_process():
        yield counter
    else:
        last = time.monotonic()

        def log_line(counter: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                console.log.info(f"{title}: {counter}")

        counter.show = log_line
        yield counter


def format_seconds(seconds: float) -> str:
    """Return a duration as minutes and seconds, `0:07` or `12:30`, from an hour on with hours, `1:02:03`."""
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if seconds < 3599.5 else text


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _gpu_memory() -> str:
    """Return the memory that this process holds on its GPU and the size of that memory; empty without a GPU in use."""
    torch = sys.modules.get("torch")  # imported by the stage, if it needs it
    if torch is None or not torch.cuda.is_initialized():
        return ""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"GPU {torch.cuda.memory_reserved() / 2**30:.1f} of {total / 2**30:.0f} GiB"
