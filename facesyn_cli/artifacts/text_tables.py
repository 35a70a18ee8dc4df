"""Tables of text cells and their three forms without a terminal: plain text, Markdown, comma-separated values.

A result is shown as blocks: a block is a table, or text of one or more lines. `cli/terminal.py` draws the same blocks
in the width of a terminal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GAP = 2                # spaces between two columns
NOT_AVAILABLE = "n/a"  # a value that could not be computed


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


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        columns: Its columns.
        rows: One cell per column each; an empty cell stands for a value that does not exist.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def select(self, numbers: Sequence[int]) -> Table:
        """Return the table with the columns of these numbers."""
        return Table([self.columns[k] for k in numbers], [[row[k] for k in numbers] for row in self.rows])

    def to_text(self) -> str:
        """Return aligned columns, with all columns."""
        lines = [[column.title for column in self.columns], *self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            (" " * GAP).join(cell.ljust(width) if column.is_text else cell.rjust(width)
                             for cell, width, column in zip(line, widths, self.columns, strict=True)).rstrip()
            for line in lines
        )

    def to_markdown(self) -> str:
        """Return the table in Markdown, with all columns."""
        rule = ["---" if column.is_text else "---:" for column in self.columns]
        header, *rows = [[cell.replace("|", "\\|") for cell in line]
                         for line in ([column.title for column in self.columns], *self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))

    def to_csv(self) -> str:
        """Return the table as comma-separated values, with all columns."""
        return to_csv([[column.title for column in self.columns], *self.rows])


Block = Table | str


def to_text(blocks: Iterable[Block]) -> str:
    """Return blocks as plain text of any width, a blank line between two of them."""
    return "\n\n".join(block.to_text() if isinstance(block, Table) else block for block in blocks)


def to_markdown(blocks: Iterable[Block]) -> str:
    """Return blocks as Markdown: tables, and every line of text as one of a list."""
    texts = []
    for block in blocks:
        lines = block.to_markdown() if isinstance(block, Table) else "".join(
            f"- {line.strip()}\n" for line in block.splitlines() if line.strip()
        )
        texts.append(lines.rstrip("\n"))
    return "\n\n".join(texts)


def to_csv(lines: Iterable[Sequence[Any]]) -> str:
    """Return lines as comma-separated values; numbers in full precision, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([repr(value) if isinstance(value, float) else value for value in line] for line in lines)
    return text.getvalue()
