"""Training figures as JSON lines, one line per report; optionally also to a tracker such as TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from facesyn_cli.artifacts.atomic_files import as_user_error, write_text
from facesyn_cli.errors import UserError
from facesyn_cli.training.tracking import TensorBoard, TrackingSettings
from facesyn_cli.untrusted.input_files import GIB, read_bytes
from facesyn_cli.untrusted.parsing import parse_json


class MetricsLog:
    """Appends figures to a `.jsonl` file. Lines of steps after the resumed one are dropped on opening.

    As a context manager it closes the tracker at the end; every line is on disk before that.

    Args:
        path: The file.
        step: Last finished step of the checkpoint that training goes on from; 0 starts anew.
        tracking: Who else gets the figures, in the folder of the file; None: nobody.
    """

    def __init__(self, path: Path, step: int = 0, tracking: TrackingSettings | None = None) -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
        self._tracker: TensorBoard | None = None
        if tracking is not None and tracking.name == "tensorboard":
            self._tracker = TensorBoard(path.parent, step, kept)

    def add(self, step: int, **figures: Any) -> None:
        """Append one line."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}, sort_keys=True) + "\n")
            if self._tracker is not None:
                self._tracker.log(step, figures)
        except OSError as error:
            raise as_user_error(error, self.path) from error

    def close(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            self._tracker.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a line torn by a kill is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in read_bytes(path, GIB, "a log of metrics (.jsonl)").split(b"\n"):
        try:
            line = parse_json(text)
        except UserError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step", 0), int | float):
            lines.append(line)
    return lines
