"""Tables on stdout that fit the width of the terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_GAP = 2  # spaces between two columns
_NARROWEST_TEXT = 24  # of a column of text that is wrapped; below this another column is dropped


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: Its header.
        is_text: Left-aligned, and wrapped where the terminal is narrow; other columns are right-aligned and never
            wrapped.
        rank: Where not all columns fit, those of the highest rank are left out first, the last of them before the
            others; rank 0 is never left out.
    """

    title: str
    is_text: bool = False
    rank: int = 0


def terminal_width() -> int | None:
    """Return the number of characters of a line of stdout; None: stdout is no terminal, and nothing is cut.

    The environment variable COLUMNS has priority.
    """
    if not os.environ.get("COLUMNS") and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def render_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table as text with the columns that fit, and a last line that names the others.

    A table of one row that does not fit becomes one line per column. Without a width all columns are there and none is
    wrapped.

    Args:
        columns: The columns.
        rows: One cell per column each.
        width: Characters of a line; None: no limit.
    """
    if width is not None and len(rows) == 1 and _natural_width(columns, rows) > width:
        return _stacked(columns, rows[0])
    shown = list(range(len(columns)))
    while width is not None and _least_width([columns[k] for k in shown], _cells(rows, shown)) > width:
        candidates = [k for k in shown if columns[k].rank]
        if not candidates:
            break
        shown.remove(max(candidates, key=lambda k: (columns[k].rank, k)))
    text = _drawn([columns[k] for k in shown], _cells(rows, shown), width)
    left_out = [column.title for k, column in enumerate(columns) if k not in shown]
    return f"{text}\nnot shown for lack of width: {', '.join(left_out)}" if left_out else text


def _cells(rows: Sequence[Sequence[str]], shown: Sequence[int]) -> list[list[str]]:
    return [[row[k] for k in shown] for row in rows]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(column.title), *(len(row[k]) for row in rows), 0) for k, column in enumerate(columns)]


def _natural_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    return sum(_widths(columns, rows)) + _GAP * (len(columns) - 1)


def _least_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    widths = [min(width, _NARROWEST_TEXT) if column.is_text else width
              for column, width in zip(columns, _widths(columns, rows), strict=True)]
    return sum(widths) + _GAP * (len(columns) - 1)


def _stacked(columns: Sequence[Column], row: Sequence[str]) -> str:
    lines = [(column.title, cell) for column, cell in zip(columns, row, strict=True) if cell]
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:{width}}  {cell}" for title, cell in lines)


def _drawn(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.title), justify="left" if column.is_text else "right", no_wrap=not column.is_text,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    is_styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    target = io.StringIO()
    console = Console(file=target, width=width or max(_natural_width(columns, rows), 1), force_terminal=is_styled,
                      no_color=True, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())
