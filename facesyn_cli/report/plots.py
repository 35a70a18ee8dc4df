"""Histograms and curves of `report.json` as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from facesyn_cli.report.axes import Axis, spanning
from facesyn_cli.report.charts import SET_COLOURS, Frame, Interval, Mark, Series, curves, histogram, intervals
from facesyn_cli.report.figures import Figure, Glossary
from facesyn_cli.report.markup import Markup, join

# What a series is decides its color, everywhere on the page.
COLOURS = {
    "genuine": "blue", "impostor": "orange",
    "image": "blue", "images": "blue", "center": "green", "centers": "green", "real": "gray", "reference": "gray",
}
_SHARES = ("FMR", "FNMR", "TMR")
_MOST_BINS = 100


def draw_histogram(glossary: Glossary, made: dict[str, Any], of: str = "") -> Markup | None:
    """Return a histogram, each series in percent of its own total; None when it is empty.

    Args:
        glossary: Definitions.
        made: A histogram of `report.json`.
        of: What the heading says it is of, where a page has several of the kind.
    """
    series = [one for one in made["series"] if one["total"]]
    if not series:
        return None
    frame = _frame(glossary, made, of)
    edges, counts = _coarser(made["edges"], [one["counts"] for one in series])
    first, last = _with_marks(edges, *_filled(counts), [mark.value for mark in frame.marks])
    width = edges[1] - edges[0]
    drawn = [
        Series(one["name"], [(edges[i], count[i] / one["total"]) for i in range(first, last + 1)],
               _color(one["name"], index), "area")
        for index, (one, count) in enumerate(zip(series, counts, strict=True))
    ]
    top = max(height for one in drawn for _, height in one.points)
    x = Axis(made["x"], edges[first], edges[last + 1])
    y = Axis("share", 0.0, top * 1.08, is_share=True)
    return histogram(frame, x, y, drawn, width)


def draw_curve(glossary: Glossary, made: dict[str, Any], of: str = "") -> Markup | None:
    """Return a chart of curves; None when no series has two points.

    Args:
        glossary: Definitions.
        made: A curve of `report.json`.
        of: As in `draw_histogram`.
    """
    logs = made["x_scale"] == "log", made["y_scale"] == "log"
    series = []
    for index, one in enumerate(made["series"]):
        points = [point for point in zip(one["x"], one["y"], strict=True) if _drawable(point, logs)]
        if len(points) > 1:
            series.append(Series(one["name"], points, _color(one["name"], index)))
    if not series:
        return None
    x = _axis(made["x"], [a for one in series for a, _ in one.points], logs[0])
    y = _axis(made["y"], [b for one in series for _, b in one.points], logs[1])
    return curves(_frame(glossary, made, of), x, y, series)


def merge_curves(named: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the same curve of several sets as one, or None when one of them consists of several series.

    Args:
        named: (name of the set, curve).
    """
    if any(len(curve["series"]) != 1 for _, curve in named):
        return None
    return {**named[0][1], "series": [{**curve["series"][0], "name": name} for name, curve in named]}


def draw_intervals(glossary: Glossary, name: str, figures: Sequence[tuple[str, Figure]]) -> Markup | None:
    """Return one figure of several sets or groups, with two standard errors to each side; None without a value.

    Args:
        glossary: Definitions.
        name: Id of the figure.
        figures: (name of the set or group, figure).
    """
    rows = []
    for index, (one, figure) in enumerate(figures):
        if figure["value"] is None:
            continue
        error = 2 * figure["error"] if figure["error"] else None
        low, high = (figure["value"] - error, figure["value"] + error) if error else (None, None)
        if figure["unit"] == "share" and error:
            low, high = max(low, 0.0), min(high, 1.0)
        rows.append(Interval(one, figure["value"], low, high, SET_COLOURS[index % len(SET_COLOURS)]))
    if not rows:
        return None
    values = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    better = glossary.better(name)
    label = f"{better} is better" if better else "neither way is better by itself"
    axis = spanning(label, values, is_share=figures[0][1]["unit"] == "share")
    return intervals(Frame(glossary.link(name)), axis, rows)


def draw_training(title: str, lines: Sequence[dict[str, Any]], key: str, held_out: str | None = None) -> Markup | None:
    """Return one figure of a training over its steps.

    Args:
        title: Heading.
        lines: Lines of `metrics.jsonl`.
        key: The figure.
        held_out: The same figure on held-out data, where there is one.
    """
    series = []
    for name, color in ((key, "blue"), (held_out, "orange")):
        points = [(line["step"], line[name]) for line in lines if name in line and _is_number(line[name])]
        if len(points) > 1:
            series.append(Series(name.replace("_", " "), points, color))
    if not series:
        return None
    values = [value for one in series for _, value in one.points]
    is_log = min(values) > 0 and max(values) / min(values) > 20
    steps = [step for one in series for step, _ in one.points]
    x = Axis("optimizer step", min(steps), max(steps))
    label = key.replace("_", " ")
    return curves(Frame(title), x, spanning(label, values, is_log), series)


def _frame(glossary: Glossary, made: dict[str, Any], of: str) -> Frame:
    marks = [Mark(mark["x"], mark["label"]) for mark in made.get("marks") or [] if _is_number(mark.get("x"))]
    title = join([glossary.link(made["id"]), f": {of}" if of else None])
    return Frame(title, glossary.text(made["id"]), marks=marks)


def _color(name: str, index: int) -> str:
    return COLOURS.get(name.split(" ")[0].lower(), SET_COLOURS[index % len(SET_COLOURS)])


def _axis(label: str, values: Sequence[float], is_log: bool) -> Axis:
    is_share = label in _SHARES or "share" in label.lower()
    if is_share and not is_log:
        return Axis(label, 0.0, 1.0, False, True) if max(values) > 0.5 else Axis(label, 0.0, max(values), False, True)
    if is_share:
        low = 10.0 ** math.floor(math.log10(min(values)) + 1e-9)
        return Axis(label, min(low, 0.1), max(1.0, *values), True, True)
    return spanning(label, list(values), is_log)


def _drawable(point: tuple[float, float], logs: tuple[bool, bool]) -> bool:
    return all(_is_number(value) and (value > 0 or not is_log) for value, is_log in zip(point, logs, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _coarser(edges: list[float], counts: list[list[int]]) -> tuple[list[float], list[list[int]]]:
    """Join neighboring bins until a chart can show what is left."""
    first, last = _filled(counts)
    while last - first + 1 > _MOST_BINS:
        if len(edges) % 2 == 0:  # an odd number of bins: one empty bin more
            edges = [*edges, 2 * edges[-1] - edges[-2]]
            counts = [[*one, 0] for one in counts]
        edges = edges[::2]
        counts = [[a + b for a, b in zip(one[::2], one[1::2], strict=True)] for one in counts]
        first, last = _filled(counts)
    return edges, counts


def _filled(counts: list[list[int]]) -> tuple[int, int]:
    """Return the first and the last bin that any series has something in."""
    filled = [index for one in counts for index, count in enumerate(one) if count]
    return min(filled), max(filled)


def _with_marks(edges: list[float], first: int, last: int, marks: Sequence[float]) -> tuple[int, int]:
    """Return the first and last bin to show, so that every mark that the bins reach is in the picture."""
    for mark in marks:
        if edges[0] <= mark <= edges[-1]:
            place = min(int((mark - edges[0]) / (edges[1] - edges[0])), len(edges) - 2)
            first, last = min(first, place), max(last, place)
    return first, last
