"""The division of classes over processes, as in TFace: contiguous ranges, the first ones one class longer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassRange:
    """The classes `start` .. `stop` - 1 of `total`: the columns that one process holds of an (E, total) tensor."""

    start: int
    stop: int
    total: int

    @property
    def width(self) -> int:
        """Number of classes in the range."""
        return self.stop - self.start

    @property
    def columns(self) -> slice:
        """The range as an index."""
        return slice(self.start, self.stop)


def class_ranges(total: int, count: int) -> list[ClassRange]:
    """Return the ranges of `count` processes: total // count classes each, and one more for the first total % count."""
    share, more = divmod(total, count)
    starts = [rank * share + min(rank, more) for rank in range(count + 1)]
    return [ClassRange(starts[rank], starts[rank + 1], total) for rank in range(count)]
