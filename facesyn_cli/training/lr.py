"""Learning rates as pure functions of the step, so that resuming needs nothing but the step.

Every function returns a factor of the base learning rate for the optimizer step that is about to be
taken (0-based). Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5 (cosine with warm restarts):

    factor(T_cur) = minimum + (1 - minimum) (1 + cos(pi T_cur / T_i)) / 2
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class LrSettings(BaseModel):
    """How the learning rate moves over training; `factor` gives it at one step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["constant", "cosine", "cosine-warm-restarts", "piecewise"] = "constant"
    warmup_steps: int = Field(0, ge=0)                    # linear rise before the schedule's own value is reached
    minimum: float = Field(0.0, ge=0, le=1)               # lowest factor of a cosine
    first_cycle: int = Field(10_000, ge=1)                # cosine-warm-restarts: steps of the first cycle (T_0)
    cycle_factor: int = Field(2, ge=1)                    # each cycle is so many times the one before (T_mult)
    milestones: tuple[int, ...] = ()                      # piecewise: steps at which the rate drops, rising
    drop: float = Field(0.1, gt=0)                        # piecewise: factor at each milestone

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)) or any(step < 1 for step in milestones):
            raise ValueError("must be rising steps of at least 1")
        return milestones

    def factor(self, step: int, horizon: int) -> float:
        """Return the factor of the base learning rate at `step` of a training of `horizon` steps."""
        if self.name == "cosine":
            value = cosine(step, horizon, self.minimum)
        elif self.name == "cosine-warm-restarts":
            value = cosine_warm_restarts(step, self.first_cycle, self.cycle_factor, self.minimum)
        elif self.name == "piecewise":
            value = piecewise(step, self.milestones, self.drop)
        else:
            value = 1.0
        return value * warmup(step, self.warmup_steps)


def depends_on_horizon(name: str) -> bool:
    """True for schedules that end with training, whose horizon therefore cannot be raised afterwards."""
    return name == "cosine"


def warmup(step: int, steps: int) -> float:
    """Return a linear rise that reaches 1 at the last of `steps` steps; the very first one is not zero."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(step: int, horizon: int, minimum: float = 0.0) -> float:
    """Return half a cosine from 1 at step 0 to `minimum` at step `horizon` and after it."""
    return _half_cosine(min(1.0, step / horizon), minimum)


def cosine_warm_restarts(step: int, first_cycle: int, cycle_factor: int = 1, minimum: float = 0.0) -> float:
    """Return the cosine of Eq. 5: it starts again at 1 after every cycle, and cycles grow.

    Args:
        step: Optimizer step, 0-based.
        first_cycle: Steps T_0 of the first cycle.
        cycle_factor: T_mult; cycle i has T_0 T_mult^i steps.
        minimum: Lowest factor.
    """
    start, length = 0, first_cycle
    if cycle_factor == 1:
        start = step // first_cycle * first_cycle
    else:
        while step >= start + length:
            start += length
            length *= cycle_factor
    return _half_cosine((step - start) / length, minimum)


def piecewise(step: int, milestones: Sequence[int], drop: float = 0.1) -> float:
    """Return `drop` to the number of milestones that `step` has reached."""
    return drop ** bisect.bisect_right(milestones, step)


def set_lr(optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups; a group's `lr_factor`, where present, multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def _half_cosine(part: float, minimum: float) -> float:
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * part))
