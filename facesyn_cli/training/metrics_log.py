"""Metrics of a training: `metrics.jsonl`, and the experiment trackers that show the same numbers.

The file is what counts; trackers follow it. Accelerate's tracker classes write to TensorBoard, W&B, MLflow and others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from facesyn_cli.artifacts.atomic_files import as_user_error, write_text
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB, read_bytes
from facesyn_cli.untrusted.parsing import parse_json

METRICS = "metrics.jsonl"  # in the output folder of a training
_PACKAGES = {"tensorboard": "facesyn[tracking]"}  # tracker -> what to install, where it is not the tracker's name


def known_trackers() -> list[str]:
    """Return the names of all trackers, installed or not."""
    return sorted(LOGGER_TYPE_TO_CLASS)


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        UserError: Naming the command that installs the package.
    """
    built_in = {str(logger) for logger in LoggerType}  # others were registered as a class and need no package
    for name in names:
        if name in built_in and find_spec(name) is None:
            package = _PACKAGES.get(name, name)
            raise UserError(f'tracking={name} needs a package that is not installed: pip install "{package}"')


class MetricsLog:
    """Appends metrics to a `.jsonl` file and passes them to trackers. A context manager that closes the trackers.

    Lines of steps after the resumed one are dropped on opening; every line is on disk when `add` returns.

    Args:
        path: The file.
        step: Last finished step of the checkpoint that the training resumes from; 0 starts anew.
        trackers: Names of the trackers.
        run_name: Project or experiment under which a tracker files the run.
    """

    def __init__(self, path: Path, step: int = 0, trackers: Iterable[str] = (), run_name: str = "facesyn") -> None:
        self.path = path
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
        self._trackers = [_start(name, path.parent, step, kept, run_name) for name in trackers]

    def add(self, step: int, **metrics: Any) -> None:
        """Append one line."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
            for tracker in self._trackers:
                tracker.log(_numbers(metrics), step=step)
        except OSError as error:
            raise as_user_error(error, self.path) from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self._trackers:
            tracker.finish()


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


def _start(name: str, folder: Path, step: int, lines: list[dict[str, Any]], run_name: str) -> GeneralTracker:
    """Start a tracker; a new run of it gets the lines up to the resumed step first.

    TensorBoard and W&B resume the run of this folder. TensorBoard hides the steps that are repeated after a kill, W&B
    ignores them. Other trackers start a new run, which is complete.
    """
    tracker_class, options, is_new = LOGGER_TYPE_TO_CLASS[name], {}, True
    if name == "tensorboard":
        is_new = not any((folder / name).glob("events.out.tfevents.*"))
        run_name, options = name, {"purge_step": step + 1}
    elif name == "wandb":
        is_new = not (folder / name).exists()
        identifier = json_digest(str(folder.resolve())).removeprefix("sha256:")[:16]
        options = {"id": identifier, "resume": "allow", "dir": str(folder), "name": folder.name}
    folders = [folder] if tracker_class.requires_logging_directory else []
    tracker = tracker_class(run_name, *folders, **options)
    if hasattr(tracker, "start"):
        tracker.start()
    for line in lines if is_new else ():
        tracker.log(_numbers(line), step=line.get("step", 0))
    return tracker


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the metrics that are numbers, without the step; nested ones as `group/name`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
            flat[f"{prefix}{name}"] = float(value)
    return flat
