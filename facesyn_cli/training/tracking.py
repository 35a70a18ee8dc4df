"""Where the figures of a training go besides `metrics.jsonl`, which stays the truth.

Accelerate's trackers write them. What a tracker shows follows `metrics.jsonl`: steps that a kill has undone are
hidden, and a tracker that is turned on later gets what is in the file first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from accelerate.tracking import TensorBoardTracker
from pydantic import BaseModel, ConfigDict

from facesyn_cli.config.fields import runtime_only
from facesyn_cli.errors import UserError

FOLDER = "tensorboard"


class TrackingSettings(BaseModel):
    """Which tracker also gets the figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["none", "tensorboard"] = runtime_only(
        "none", "who else gets the figures of metrics.jsonl; tensorboard: event files in tensorboard/ of the output"
    )

    def check(self) -> None:
        """Refuse a tracker whose package is missing.

        Raises:
            UserError: TensorBoard is wanted and not installed.
        """
        if self.name == "tensorboard" and find_spec("tensorboard") is None:
            raise UserError(
                'tracking.name=tensorboard needs a package that is not installed: pip install "facesyn[tracking]"'
            )


class TensorBoard:
    """Figures as event files in `tensorboard/`.

    Args:
        folder: Output folder of the training.
        step: Last finished step; later steps that an earlier run has shown are hidden.
        lines: Lines of `metrics.jsonl` up to that step, shown where there are no event files yet.
    """

    def __init__(self, folder: Path, step: int, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        is_new = not any((folder / FOLDER).glob("events.out.tfevents.*"))
        self._tracker = TensorBoardTracker(FOLDER, folder, purge_step=step + 1)
        self._tracker.start()
        for line in lines if is_new else ():
            self.log(line.get("step", 0), {name: value for name, value in line.items() if name != "step"})

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add the figures of one step; on disk when this returns."""
        self._tracker.log(_numbers(figures), step=step)

    def close(self) -> None:
        """Close the event file."""
        self._tracker.finish()


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the figures that are numbers; nested ones as `group/name`."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
