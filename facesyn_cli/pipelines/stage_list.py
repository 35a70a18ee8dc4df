"""Run stages one after the other and show all of them from the start: a mark, the state, the time, what each one made.

On a terminal the list is redrawn, with the progress of the running stage below it; otherwise `[2/7] sample` is logged
when a stage starts. At the end, also after an error, the list is logged once more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facesyn_cli import console, display
from facesyn_cli.artifacts.header import HEADER, read_header
from facesyn_cli.artifacts.work import OUTPUTS, Work
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.errors import Stopped
from facesyn_cli.pipelines.stage import run_stage
from facesyn_cli.progress import format_seconds

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

State = Literal["waiting", "running", "done", "done earlier", "skipped", "failed", "stopped"]
_MARKS: dict[State, tuple[str, str, str]] = {  # state -> mark, mark in ASCII, style
    "waiting": ("\u00b7", ".", "dim"), "running": ("\u25b6", ">", "bold"), "done": ("\u2713", "+", "green"),
    "done earlier": ("\u2713", "+", "dim green"), "skipped": ("-", "-", "dim"), "failed": ("\u2717", "x", "bold red"),
    "stopped": ("\u25a0", "#", "yellow"),
}
_COUNTS = (  # of what a stage made, in the order in which two are shown
    "steps", "epochs", "images", "embeddings", "contexts", "identities", "benchmarks", "pairs", "rows", "photos",
)


@dataclass(frozen=True)
class Step:
    """One stage of a run.

    Args:
        title: Its name in the list and in the results; differs from `stage` where a stage runs several times.
        stage: Name of the stage.
        cfg: Resolved settings; None: the stage is skipped.
        reason: Why it is skipped.
    """

    title: str
    stage: str
    cfg: StageConfig | None
    reason: str = ""


def run_steps(steps: Sequence[Step], work: Work) -> dict[str, dict[str, Any]]:
    """Run stages in order.

    Returns:
        By title, the summary of the stage with `folder`, `state` (`done`, or `done earlier` where the folder was
        finished before) and `seconds`; of a skipped one `state` (`skipped`) and `reason`.

    Raises:
        UserError: A stage fails; earlier stages keep their finished work.
    """
    rows = [_Row.of(step, work) for step in steps]
    todo = [row for row in rows if row.step.cfg is not None]
    results: dict[str, dict[str, Any]] = {}
    with _shown(rows):
        for row in rows:
            if row.step.cfg is None:
                results[row.step.title] = {"state": row.state, "reason": row.note}
                continue
            console.log.info(f"[{todo.index(row) + 1}/{len(todo)}] {row.step.title}")
            results[row.step.title] = row.run(work)
    return results


@dataclass(eq=False)
class _Row:
    """A line of the list.

    Args:
        step: The stage.
        folder: Where it is expected to write; None: not known before.
        state: Of the stage.
        note: What it made, or why it is skipped.
        begin: When it started.
        seconds: Its time.
    """

    step: Step
    folder: Path | None
    state: State = "waiting"
    note: str = ""
    begin: float = 0.0
    seconds: float | None = None

    @staticmethod
    def of(step: Step, work: Work) -> _Row:
        """Return the line of a stage before the first one runs."""
        if step.cfg is None:
            return _Row(step, None, "skipped", step.reason)
        folder = getattr(step.cfg, "out", None)
        if folder is None and step.stage in OUTPUTS:
            folder = work.folder(OUTPUTS[step.stage])
        is_finished = folder is not None and _stamp(folder) is not None and read_header(folder) is not None
        return _Row(step, folder, "done earlier" if is_finished else "waiting")

    def run(self, work: Work) -> dict[str, Any]:
        """Run the stage and return its result."""
        stamp = None if self.state == "waiting" or self.folder is None else _stamp(self.folder)
        self.state, self.begin = "running", time.monotonic()
        try:
            outcome = run_stage(self.step.stage, self.step.cfg, work)
        except (Stopped, KeyboardInterrupt):
            self.state = "stopped"
            raise
        except BaseException:
            self.state = "failed"
            raise
        finally:
            self.seconds = time.monotonic() - self.begin
        self.state = "done" if stamp is None or _stamp(outcome.folder) != stamp else "done earlier"
        header = read_header(outcome.folder)
        counts = header.counts if header is not None else {}
        self.note = ", ".join(_counted(counts[name], name) for name in [name for name in _COUNTS if name in counts][:2])
        facts = {"folder": str(outcome.folder), "state": self.state, "seconds": round(self.seconds, 1)}
        return {**outcome.summary, **facts}

    def line(self, width: int, is_ascii: bool) -> str:
        """Return mark, title, state, time and note; `width` is that of the titles."""
        seconds = time.monotonic() - self.begin if self.state == "running" else self.seconds
        shown = "" if seconds is None or self.state == "done earlier" else format_seconds(seconds)
        shown = "earlier" if self.state == "done earlier" else shown
        state = "done" if self.state == "done earlier" else self.state
        return f"{_MARKS[self.state][is_ascii]} {self.step.title:{width}}  {state:7}  {shown:>7}  {self.note}".rstrip()


def _counted(count: int, name: str) -> str:
    singular = "identity" if name == "identities" else name.removesuffix("s")
    return f"{count} {singular if count == 1 else name}"


def _stamp(folder: Path) -> tuple[int, ...] | None:
    """Return what changes when a stage writes its header anew; None without a header."""
    try:
        found = (folder / HEADER).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class _List:
    """The list on a terminal."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the lines; where the terminal is too low, those around the running stage."""
        from rich.text import Text

        rows, room = self._rows, max(1, console.height - 4)  # below: progress and what is nested in it
        place = next((number for number, row in enumerate(rows) if row.state in ("running", "waiting")), len(rows) - 1)
        first = max(0, min(place - room // 2, len(rows) - room))
        width = max(len(row.step.title) for row in rows)
        for row in rows[first : first + room]:
            overflow = "crop" if options.ascii_only else "ellipsis"
            yield Text(row.line(width, options.ascii_only), _MARKS[row.state][2], no_wrap=True, overflow=overflow)


@contextmanager
def _shown(rows: list[_Row]) -> Iterator[None]:
    """Show the list in the block, and log it at the end."""
    is_ascii = not (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")
    width = max(len(row.step.title) for row in rows)
    try:
        with display.shown(_List(rows), is_kept=False) if console.is_redrawn() else nullcontext():
            yield
    finally:
        console.log.info("\n".join(["stages:", *(f"  {row.line(width, is_ascii)}" for row in rows)]))
