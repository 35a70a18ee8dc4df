"""Tables of text cells, the header first: aligned for a terminal, as Markdown, and as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def aligned(lines: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return the lines in columns, two spaces apart; the columns in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if k in left else cell.rjust(width)
                  for k, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def to_markdown(lines: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return the lines as a table of Markdown; the columns in `left` to the left, the others to the right."""
    header, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---" if k in left else "---:" for k in range(len(header))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rest))


def to_csv(lines: Iterable[Sequence[Any]]) -> str:
    """Return the lines as comma-separated values; numbers in full precision, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([repr(value) if isinstance(value, float) else value for value in line] for line in lines)
    return text.getvalue()
