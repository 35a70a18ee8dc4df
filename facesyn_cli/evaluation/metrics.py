"""Metrics of a report, each declared once beside the code that computes it.

A declaration holds everything that is shown with a value: name, sentence, formula, source, direction, unit and place.
Page, dataset card, `report.json` and the text for a terminal use it. To add a metric, add one `Metric` to the
`declare` call of the module that computes it, and one `Figure` (or histogram, curve, list) with its id to the section
that the module returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

IDIFF = "IDiff-Face, arXiv:2308.04995"
DCFACE = "DCFace, arXiv:2304.07060"
VEC2FACE = "Vec2Face, arXiv:2409.02979"
VIGFACE = "VIGFace, arXiv:2403.08277"
VARIFACE = "VariFace, arXiv:2412.06235"
UNVEILING = "Unveiling Synthetic Faces, arXiv:2410.24015"
PRDC = "Naeem et al., arXiv:2002.09797"
RECALL = "Kynkaanniemi et al., arXiv:1904.06991"
ISO = "ISO/IEC 19795-1"
ZHANG = "Zhang et al., arXiv:1801.03924, Eq. 1"
RFW = "RFW, arXiv:1812.00194"


@dataclass(frozen=True)
class Metric:
    """The declaration of one figure, histogram, curve or list of images."""

    id: str                                               # key in `report.json`: the section, a dot, and a name
    title: str                                            # name on the page and the card
    text: str                                             # a sentence or two for readers without training in biometrics
    formula: str = ""                                     # in plain text; empty for pictures
    source: str = ""                                      # where the definition is from; empty when it is ours
    better: Literal["higher", "lower"] | None = None      # direction; None: neither
    unit: Literal["", "share", "cosine", "count"] = ""    # a share is shown in percent
    headline: int = 0                                     # rank among the figures of the summary; 0: not one of them
    by_group: Literal["", "table", "chart"] = ""          # where a figure by group is shown; empty: behind a click
    cell: tuple[str, str, str] | None = None              # (caption, row, column) of a figure shown in a matrix
    show: Literal["sheet", "pairs", "strips"] = "strips"  # layout of a list of images


_DECLARED: dict[str, Metric] = {}


def declare(*metrics: Metric) -> None:
    """Make metrics known under their ids; each module of analyses calls it once, when it is imported.

    Raises:
        ValueError: An id is taken.
    """
    for one in metrics:
        if one.id in _DECLARED:
            raise ValueError(f"two metrics are called {one.id!r}")
        _DECLARED[one.id] = one


@cache
def metric(name: str) -> Metric:
    """Return the metric with an id; `fairness.X` and `fairness.X_spread` follow from the metric X.

    Raises:
        KeyError: No such metric.
    """
    if name in _DECLARED:
        return _DECLARED[name]
    if name.startswith("fairness."):
        return _by_group(name)
    raise KeyError(name)


def declared() -> list[Metric]:
    """Return every declared metric."""
    return list(_DECLARED.values())


def headline() -> list[str]:
    """Return the ids of the most important figures, in order."""
    return [one.id for one in sorted(_DECLARED.values(), key=lambda one: one.headline) if one.headline]


def define(names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Return the definitions of the given ids as JSON values, in order.

    Raises:
        KeyError: One of them has none.
    """
    fields = ("title", "text", "formula", "source", "better")
    return {name: {field: getattr(metric(name), field) for field in fields} for name in names}


def _by_group(name: str) -> Metric:
    """Return `fairness.X`, the metric X within one group, or `fairness.X_spread`, its range over the groups."""
    whole = name.removeprefix("fairness.")
    is_spread = whole.endswith("_spread") and whole not in _DECLARED  # some metrics are spreads themselves
    inner = whole.removesuffix("_spread") if is_spread else whole
    base = _DECLARED.get(f"fairness.{inner}") or (_DECLARED[inner] if "." in inner else None)
    if base is None:
        raise KeyError(name)
    if is_spread:
        return replace(base, id=name, title=f"{base.title}: spread", better="lower",
                       text=f"{base.text} Here: the range over the groups.",
                       formula="largest minus smallest of the groups")
    return replace(base, id=name, text=f"{base.text} Here: within one group.")
