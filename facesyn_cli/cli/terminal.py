"""Tables and text on stdout that fit the width of the terminal.

Without a terminal a table has all columns and no line is wrapped.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from facesyn_cli import display
from facesyn_cli.artifacts.text_tables import GAP, NOT_AVAILABLE, Block, Column, Table

__all__ = ["Column", "Table", "draw", "render_table", "terminal_width"]

_NARROWEST_TEXT = 24  # of a column of text that is wrapped; below this another column is dropped
_KEY = re.compile(r"\s*[\w -]{1,40}: ")


def terminal_width() -> int | None:
    """Return the number of characters of a line of stdout; None: stdout is no terminal, and nothing is cut.

    The environment variable COLUMNS has priority.
    """
    if not os.environ.get("COLUMNS") and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def draw(blocks: Iterable[Block], width: int | None = None) -> str:
    """Return tables and text for a terminal, a blank line between two of them.

    Args:
        blocks: Tables, drawn as `render_table` does, and texts, wrapped between words.
        width: Characters of a line; None: no limit.
    """
    return "\n\n".join(
        render_table(block.columns, block.rows, width) if isinstance(block, Table) else _wrapped(block, width)
        for block in blocks
    )


def render_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table as text with the columns that fit, and a last line that names the others.

    Without a width all columns are there and none is wrapped. Otherwise columns in which no row has a value are left
    out; a table of one row becomes one line per column, and so does each row where the columns of rank 0 do not fit.

    Args:
        columns: The columns.
        rows: One cell per column each.
        width: Characters of a line; None: no limit.
    """
    table = Table(columns, rows)
    if width is None:
        return table.to_text()
    table = table.select([k for k in range(len(columns)) if not rows or any(_has_value(row[k]) for row in rows)])
    essential = table.select([k for k, column in enumerate(table.columns) if not column.rank])
    if len(rows) == 1 or _least_width(essential) > width:
        return _stacked(table, width)
    shown = list(range(len(table.columns)))
    while _least_width(table.select(shown)) > width:
        shown.remove(max(shown, key=lambda k: (table.columns[k].rank, k)))
    text = _drawn(table.select(shown), width)
    left_out = ", ".join(column.title for k, column in enumerate(table.columns) if k not in shown)
    return f"{text}\n{_wrapped(f'not shown for lack of width: {left_out}', width)}" if left_out else text


def _has_value(cell: str) -> bool:
    return cell not in ("", NOT_AVAILABLE)


def _widths(table: Table) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, (column.title, *(row[k] for row in table.rows))))
            for k, column in enumerate(table.columns)]


def _least_width(table: Table) -> int:
    widths = [min(width, _NARROWEST_TEXT) if column.is_text else width
              for column, width in zip(table.columns, _widths(table), strict=True)]
    return sum(widths) + GAP * (len(widths) - 1)


def _stacked(table: Table, width: int) -> str:
    """Return one line per value, and a blank line between two rows."""
    left = max((len(column.title) for column in table.columns), default=0) + GAP
    rows = []
    for row in table.rows:
        lines = []
        for column, cell in zip(table.columns, row, strict=True):
            text = _wrapped(cell, max(width - left, 1)).replace("\n", "\n" + " " * left)
            lines += [f"{_bold(column.title)}{' ' * (left - len(column.title))}{text}"] if cell else []
        rows.append("\n".join(lines))
    return "\n\n".join(rows)


def _drawn(table: Table, width: int) -> str:
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing = Drawing(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in table.columns:
        drawing.add_column(
            Text(column.title), justify="left" if column.is_text else "right", no_wrap=not column.is_text,
            overflow="fold",
        )
    for row in table.rows:
        drawing.add_row(*map(Text, row))
    target = io.StringIO()
    is_styled = display.has_color(sys.stdout)
    console = Console(file=target, width=width, force_terminal=is_styled, no_color=True, highlight=False)
    console.print(drawing)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def _wrapped(text: str, width: int | None) -> str:
    """Return a text wrapped between words, with the indentation of each line, and more of it after `key: value`.

    Words, such as paths, stay whole, and so do lines of a key and one word.
    """
    if width is None:
        return text
    lines = []
    for line in text.splitlines():
        if len(line.split()) == 2 and line.split()[0].endswith(":"):
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())] + ("  " if _KEY.match(line) else "")
        lines += textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False,
                               break_on_hyphens=False) or [""]
    return "\n".join(lines)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if display.has_color(sys.stdout) else text
