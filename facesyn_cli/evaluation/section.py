"""The result of an analysis: figures, histograms, curves, lists of images, and findings in words.

Every figure has the number of things it was computed from, whether those are all or a sample, and its standard error
where one is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from facesyn_cli.evaluation.metrics import metric

Level = Literal["fault", "warning", "note", "good"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note", "good")  # most serious first
BOOTSTRAP = "bootstrap over identities"
JACKKNIFE = "jackknife over groups of identities"
SPREAD = "spread over identities"


@dataclass(frozen=True)
class Figure:
    """One number."""

    id: str                         # id of the metric
    value: float | None             # the number; None where it is not defined
    n: int                          # how many things it was computed from
    of: str                         # name of those things
    exact: bool = True              # computed from all things; False: from a sample
    error: float | None = None      # standard error
    error_from: str | None = None   # method of the standard error
    threshold: float | None = None  # score at which the value was computed
    group: str | None = None        # group of people, as `attribute=value`; None: all

    @property
    def unit(self) -> str:
        """Unit of the metric."""
        return metric(self.id).unit

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become None."""
        error = finite(self.error)
        return {**vars(self), "unit": self.unit, "n": int(self.n), "exact": bool(self.exact),
                "value": finite(self.value), "error": error, "threshold": finite(self.threshold),
                "error_from": None if error is None else self.error_from}


@dataclass(frozen=True)
class Histogram:
    """Counts over equal bins, of one or several series."""

    id: str                                                   # id of the metric
    x: str                                                    # name of the horizontal axis
    edges: ArrayLike                                          # (B + 1,) bin edges
    series: dict[str, ArrayLike]                              # name -> (B,) counts
    marks: list[tuple[float, str]] = field(default_factory=list)  # (x, label) of vertical lines
    exact: bool = True                                        # all values were counted; False: a sample

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        series = [
            {"name": name, "counts": np.asarray(counts).astype(int).tolist(), "total": int(np.sum(counts))}
            for name, counts in self.series.items()
        ]
        marks = [{"x": round(float(x), 5), "label": label} for x, label in self.marks if finite(x) is not None]
        return {"id": self.id, "x": self.x, "edges": rounded(self.edges), "series": series, "exact": self.exact,
                "marks": marks}


@dataclass(frozen=True)
class Curve:
    """Lines over a common pair of axes."""

    id: str                                         # id of the metric
    x: str                                          # name of the horizontal axis; a scale is `linear` or `log`
    y: str                                          # name of the vertical axis
    series: dict[str, tuple[ArrayLike, ArrayLike]]  # name -> (x values, y values)
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    marks: list[tuple[float, float, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        series = [{"name": name, "x": rounded(x), "y": rounded(y)} for name, (x, y) in self.series.items()]
        marks = [{"x": float(x), "y": float(y), "label": label} for x, y, label in self.marks]
        return {"id": self.id, "x": self.x, "y": self.y, "x_scale": self.x_scale, "y_scale": self.y_scale,
                "series": series, "marks": marks}


@dataclass(frozen=True)
class Row:
    """One entry of a list of images."""

    images: list[tuple[str, str]]                        # (name of the set, key) of each image
    identities: list[str] = field(default_factory=list)  # identities in the images
    score: float | None = None                           # cosine by which they were chosen
    likeness: float | None = None                        # correlation of their pixels, in [-1, 1]
    label: str = ""                                      # text shown beside them

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"images": [{"set": name, "key": key} for name, key in self.images], "identities": self.identities,
                "score": finite(self.score), "likeness": finite(self.likeness), "label": self.label}


@dataclass(frozen=True)
class Finding:
    """A sentence of the summary, with the figures and lists behind it."""

    level: Level
    text: str
    figures: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)


@dataclass
class Section:
    """The results of one analysis."""

    figures: list[Figure] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    lists: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    verdict: dict[str, str] | None = None

    def value(self, name: str) -> float | None:
        """Return the value of the figure with this id (of all people), or None."""
        return next((figure.value for figure in self.figures if figure.id == name and figure.group is None), None)

    def merge(self, other: Section) -> Section:
        """Append the results of another analysis; returns this section."""
        for name in ("figures", "histograms", "curves", "notes", "findings"):
            getattr(self, name).extend(getattr(other, name))
        self.lists.update(other.lists)
        self.verdict = self.verdict or other.verdict
        return self

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without findings, which belong to the summary."""
        return {
            "figures": [figure.to_json() for figure in self.figures],
            "histograms": [histogram.to_json() for histogram in self.histograms],
            "curves": [curve.to_json() for curve in self.curves],
            "lists": [{"id": name, "rows": [row.to_json() for row in rows]} for name, rows in self.lists.items()],
            "notes": self.notes,
            "verdict": self.verdict,
        }


def finite(value: float | None) -> float | None:
    """Return a plain float rounded to 7 significant digits, or None where it is not a finite number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.7g}")


def rounded(values: ArrayLike) -> list[float]:
    """Return numbers for JSON, rounded to 6 significant digits."""
    return [float(f"{value:.6g}") for value in np.asarray(values, dtype=np.float64)]


def mean_over_identities(
    name: str, per_identity: ArrayLike, of: str = "identities", exact: bool = True
) -> Figure:
    """Return the mean of one value per identity, with the standard error s / sqrt(C) of C identities.

    Args:
        name: Id of the figure.
        per_identity: (C,) values; NaN where an identity has none.
        of: Name of what was averaged.
        exact: See `Figure`.
    """
    values = np.asarray(per_identity, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Figure(name, None, 0, of, exact)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Figure(name, float(values.mean()), len(values), of, exact, error, SPREAD)


def jackknife_error(left_out: ArrayLike) -> float:
    """Return the standard error of a figure from its (G,) values without each of G groups."""
    values = np.asarray(left_out, dtype=np.float64)
    return float(np.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum()))


def clustered_error(values: ArrayLike, owner: ArrayLike) -> float | None:
    """Return the standard error of a mean over images of which whole identities were drawn (cluster sampling).

    Args:
        values: (N,) one value an image.
        owner: (N,) identity of each image.

    Returns:
        sqrt(C / (C - 1) sum_c (sum of residuals of identity c)^2) / N; None of a single identity.
    """
    values = np.asarray(values, dtype=np.float64)
    groups, place = np.unique(owner, return_inverse=True)
    if len(groups) < 2:
        return None
    residual = np.bincount(place, weights=values - values.mean())
    return float(np.sqrt(len(groups) / (len(groups) - 1) * np.square(residual).sum()) / len(values))
