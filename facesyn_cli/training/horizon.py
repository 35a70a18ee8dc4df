"""Whether a training that was begun can be made longer."""

from __future__ import annotations

from pathlib import Path

from facesyn_cli.artifacts.header import BEGUN, HEADER, Header
from facesyn_cli.errors import UserError
from facesyn_cli.training.lr import depends_on_horizon


def check_horizon(folder: Path, steps: int, schedule: str) -> None:
    """Refuse another number of steps where earlier learning rates would have been others.

    Args:
        folder: Output folder of the training; may be new.
        steps: Steps asked for now.
        schedule: Name of the learning-rate schedule.

    Raises:
        UserError: It was begun with another number of steps, and the schedule ends with training.
    """
    for path in (folder / BEGUN, folder / HEADER):
        if path.is_file():
            before = Header.read(path).config.get("growing", {}).get("steps", steps)
            if before != steps and depends_on_horizon(schedule):
                raise UserError(
                    f"{folder} was begun with steps={before}; lr_schedule {schedule} depends on it, so it cannot "
                    f"become {steps}. Use constant, cosine-warm-restarts or piecewise, or another --out"
                )
            return
