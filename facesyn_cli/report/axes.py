"""Axes of charts: from values to places, with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from facesyn_cli.report.figure_text import number


@dataclass(frozen=True)
class Axis:
    """One axis of a chart."""

    label: str                # name, with its unit
    low: float                # value at the start
    high: float               # value at the end; above `low`
    is_log: bool = False      # logarithmic; `low` is then above 0, and smaller values are drawn at `low`
    is_share: bool = False    # values are fractions, written in percent

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.is_log and self.low <= 0):
            raise ValueError(f"axis {self.label!r} cannot go from {self.low} to {self.high}")

    def place(self, value: float) -> float:
        """Return the place of a value, from 0 at the start to 1 at the end; values outside are clipped."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Return (value, label) of at most about `most` round values within the axis."""
        values = self._decades(most) if self.is_log else self._steps(most)
        return [(value, self.format(value)) for value in values]

    def format(self, value: float) -> str:
        """Return a value of this axis as text."""
        return _tidy_percent(value) if self.is_share else number(value)

    def _decades(self, most: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / most))
        decades = [10.0**exponent for exponent in range(first, last + 1, every)]
        return decades if len(decades) > 1 else [self.low, self.high]

    def _steps(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _tidy_percent(value: float) -> str:
    """Return a fraction in percent with three digits and no trailing zeros."""
    share = 100 * value
    digits = f"{share:.3g}" if abs(share) >= 1e-3 or share == 0 else f"{share:.6f}".rstrip("0")
    return f"{digits} %"


def spanning(label: str, values: list[float], is_log: bool = False, is_share: bool = False) -> Axis:
    """Return an axis that holds all the given finite values, with a margin on a linear one."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)] or [1.0]
    low, high = min(finite), max(finite)
    if is_log:
        return Axis(label, low, high if high > low else low * 10, True, is_share)
    air = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Axis(label, low if low == 0 else low - air, high + air, False, is_share)
