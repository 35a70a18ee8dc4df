"""Training figures as JSON lines, one line per report; optionally also to TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.files import explain, write_text


class MetricsLog:
    """Appends figures to a `.jsonl` file. Lines of steps after the resumed one are dropped on opening.

    Args:
        path: The file.
        step: Last finished step of the checkpoint that training goes on from; 0 starts anew.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))

    def add(self, step: int, **figures: Any) -> None:
        """Append one line."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}, sort_keys=True) + "\n")
        except OSError as error:
            raise explain(error, self.path) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a line torn by a kill is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
