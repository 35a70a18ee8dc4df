"""The result of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of one stage.

    Args:
        folder: Where the stage wrote.
        summary: JSON values; printed to stdout with `--json`.
        text: The same as text; empty: one `key: value` line per entry of `summary`.
    """

    folder: Path
    summary: dict[str, Any]
    text: str = ""

    def render(self) -> str:
        """Return the text form."""
        return self.text or render_summary(self.summary)


def render_summary(summary: dict[str, Any]) -> str:
    """Return one `key: value` line per entry, nested ones indented."""
    lines = []
    for key, value in summary.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in render_summary(value).splitlines()]
        elif isinstance(value, float):
            lines.append(f"{name}: {value:.4g}")
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)
