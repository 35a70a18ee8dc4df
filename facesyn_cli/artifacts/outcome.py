"""The result of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts import text_tables
from facesyn_cli.artifacts.text_tables import Block


@dataclass(frozen=True)
class Outcome:
    """The result of one stage.

    Args:
        folder: Where the stage wrote.
        summary: JSON values; printed to stdout with `--json`.
        blocks: The same for a person, as tables and text; empty: one `key: value` line per entry of `summary`, counts
            first and digests last.
    """

    folder: Path
    summary: dict[str, Any]
    blocks: Sequence[Block] = ()

    @property
    def text(self) -> str:
        """The blocks as plain text; empty where there are none."""
        return text_tables.to_text(self.blocks)

    def shown(self) -> list[Block]:
        """Return what the command prints: the blocks, or the summary, and the folder."""
        *blocks, last = self.blocks or [render_summary(dict(sorted(self.summary.items(), key=_place)))]
        folder = f"folder: {self.folder}"
        return [*blocks, f"{last}\n{folder}".lstrip()] if isinstance(last, str) else [*blocks, last, folder]


def render_summary(summary: dict[str, Any]) -> str:
    """Return one `key: value` line per entry, nested ones indented.

    Values that do not exist are left out.
    """
    lines = []
    for key, value in summary.items():
        name = key.replace("_", " ")
        if value is None or value in ({}, [], ""):
            continue
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in render_summary(value).splitlines()]
        else:
            lines.append(f"{name}: {show_value(value)}")
    return "\n".join(lines)


def show_value(value: Any) -> str:
    """Return a value as a person reads it: counts with separators, four digits of other numbers, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(item)}" for key, item in value.items())
    return str(value)


def _place(item: tuple[str, Any]) -> int:
    """Return the place of an entry among others: counts, words and measured numbers, nested entries, digests."""
    value = item[1]
    if isinstance(value, int) and not isinstance(value, bool):
        return 0
    if isinstance(value, dict):
        return 2
    return 3 if isinstance(value, str) and value.startswith("sha256:") else 1
