"""Histograms, curves and intervals of `report.json` as charts: geometry here, SVG in `templates/blocks.html.j2`.

Colors are names that the style sheet of the page knows (`blue`, `orange`, `green`, `purple`, `gray`), so a chart
follows the theme; every series has dashes of its own as well. The value at a point appears on hover, tap or focus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from facesyn_cli.evaluation.all_metrics import metric
from facesyn_cli.report.axes import Axis, spanning
from facesyn_cli.report.blocks import Chart, Interval, Mark, Series, Span, Term, Text
from facesyn_cli.report.figure_text import Figure

WIDTH, HEIGHT = 420, 280                      # units of the view box; text is 13 of them, 15 on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 22, HEIGHT - 46  # of the plot
SET_COLORS = ("blue", "orange", "green", "purple")
COLORS = {                                    # by the first word of the name of a series, everywhere on the page
    "genuine": "blue", "impostor": "orange",
    "image": "blue", "images": "blue", "center": "green", "centers": "green", "real": "gray", "reference": "gray",
}
_SHARES = ("FMR", "FNMR", "TMR")
_MOST_BINS = 100
_MOST_TIPS = 48                               # points of one curve with a tip
_NAMES, _ROW, _MOST_NAME = 130, 34, 17        # interval chart: width of the names, height of a row, letters of a name

Points = Sequence[tuple[float, float]]


def draw_histogram(title: Text, made: dict[str, Any]) -> Chart | None:
    """Return a histogram, each series in percent of its own total; None when it is empty.

    Args:
        title: Heading.
        made: A histogram of `report.json`.
    """
    series = [one for one in made["series"] if one["total"]]
    if not series:
        return None
    edges, counts = _coarser(made["edges"], [one["counts"] for one in series])
    first, last = with_marks(edges, *_filled(counts), [mark["x"] for mark in _marks_of(made)])
    width = edges[1] - edges[0]
    heights = [[count[i] / one["total"] for i in range(first, last + 1)]
               for one, count in zip(series, counts, strict=True)]
    x = Axis(made["x"], edges[first], edges[last + 1])
    y = Axis("share", 0.0, max(map(max, heights)) * 1.08, is_share=True)
    drawn, tips = [], [f"{x.format(edges[i])} to {x.format(round(edges[i] + width, 9))}: "
                       for i in range(first, last + 1)]
    for index, (one, height) in enumerate(zip(series, heights, strict=True)):
        corners = [(edges[first], 0.0)]
        for k, share in enumerate(height):
            left = edges[first + k]
            corners += [(left, share), (left + width, share)]
            tips[k] += f"{', ' if index else ''}{one['name']} {y.format(share)}"
        corners.append((corners[-1][0], 0.0))
        area = _path(x, y, [*corners, (corners[-1][0], y.low), (corners[0][0], y.low)]) + "Z"
        drawn.append(Series(one["name"], _color(one["name"], index), _path(x, y, corners), area))
    columns = []
    for k, tip in enumerate(tips):
        start, end = (_across(x, edges[first + k] + more) for more in (0.0, width))
        columns.append((round(start, 1), round(max(end - start, 0.1), 1), tip))
    return _plot(title, made, x, y, drawn, columns)


def draw_curve(title: Text, made: dict[str, Any]) -> Chart | None:
    """Return a chart of curves; None when no series has two points.

    Args:
        title: Heading.
        made: A curve of `report.json`.
    """
    logs = made["x_scale"] == "log", made["y_scale"] == "log"
    found = []
    for index, one in enumerate(made["series"]):
        points = [point for point in zip(one["x"], one["y"], strict=True) if _drawable(point, logs)]
        if len(points) > 1:
            found.append((one["name"], points, _color(one["name"], index)))
    if not found:
        return None
    x, y = (_axis(made[name], [point[k] for _, points, _ in found for point in points], logs[k])
            for k, name in enumerate("xy"))
    return _plot(title, made, x, y, [_curve(*one, x, y) for one in found])


def draw_training(title: str, lines: Sequence[dict[str, Any]], key: str, held_out: str | None = None) -> Chart | None:
    """Return one figure of a training over its steps; None when it has no two points.

    Args:
        title: Heading.
        lines: Lines of `metrics.jsonl`.
        key: The figure.
        held_out: The same figure on held-out data, where there is one.
    """
    found = []
    for name, color in ((key, "blue"), (held_out, "orange")):
        points = [(line["step"], line[name]) for line in lines if name in line and _is_number(line[name])]
        if len(points) > 1:
            found.append((name.replace("_", " "), points, color))
    if not found:
        return None
    values = [value for _, points, _ in found for _, value in points]
    steps = [step for _, points, _ in found for step, _ in points]
    is_log = min(values) > 0 and max(values) / min(values) > 20
    x, y = Axis("optimizer step", min(steps), max(steps)), spanning(key.replace("_", " "), values, is_log)
    return _plot(title, {}, x, y, [_curve(*one, x, y) for one in found])


def draw_intervals(title: Term, name: str, figures: Sequence[tuple[str, Figure]]) -> Chart | None:
    """Return one figure of several sets or groups, with two standard errors to each side; None without a value.

    Args:
        title: Heading.
        name: Id of the figure.
        figures: (name of the set or group, figure).
    """
    found = []
    for index, (one, figure) in enumerate(figures):
        if figure["value"] is None:
            continue
        value, error = figure["value"], 2 * figure["error"] if figure["error"] else None
        bounds = [value - error, value + error] if error else []
        if figure["unit"] == "share":
            bounds = [min(max(bound, 0.0), 1.0) for bound in bounds]
        found.append((one, value, bounds, SET_COLORS[index % len(SET_COLORS)]))
    if not found:
        return None
    better = metric(name).better
    x = spanning(f"{better} is better" if better else "neither way is better by itself",
                 [value for _, value, bounds, _ in found for value in (value, *bounds)],
                 is_share=figures[0][1]["unit"] == "share")
    rows = []
    for index, (one, value, bounds, color) in enumerate(found):
        tip = f"{one}: {x.format(value)}" + (f" ({' to '.join(map(x.format, bounds))})" if bounds else "")
        place, *ends = (round(_across(x, at, _NAMES), 1) for at in (value, *bounds))
        rows.append(Interval(_shorten(one), TOP + _ROW * (index + 0.5), color, place, *(ends or (None, None)), tip))
    bottom = TOP + _ROW * len(rows)
    return Chart(title, f"Chart: {title.label}", WIDTH, bottom + HEIGHT - BOTTOM, (_NAMES, TOP, RIGHT, bottom), x.label,
                 [(round(_across(x, at, _NAMES), 1), label) for at, label in x.ticks(4)], intervals=rows)


def merge_curves(named: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """Return the same curve of several sets as one, or None when one of them consists of several series.

    Args:
        named: (name of the set, curve).
    """
    if any(len(curve["series"]) != 1 for _, curve in named):
        return None
    return {**named[0][1], "series": [{**curve["series"][0], "name": name} for name, curve in named]}


def with_marks(edges: list[float], first: int, last: int, marks: Sequence[float]) -> tuple[int, int]:
    """Return the first and last bin to show, so that every mark that the bins reach is in the picture."""
    for mark in marks:
        if edges[0] <= mark <= edges[-1]:
            place = min(int((mark - edges[0]) / (edges[1] - edges[0])), len(edges) - 2)
            first, last = min(first, place), max(last, place)
    return first, last


def _plot(
    title: Text, made: dict[str, Any], x: Axis, y: Axis, series: Sequence[Series],
    columns: Sequence[tuple[float, float, str]] = (),
) -> Chart:
    marks = []
    for index, mark in enumerate(_marks_of(made)):
        place = _across(x, mark["x"])
        is_left = x.place(mark["x"]) > 0.6  # the label is placed where there is more room
        marks.append(Mark(round(place, 1), round(place + (-5 if is_left else 5), 1), TOP + 12 + 16 * index,
                          "end" if is_left else "start", mark["label"]))
    return Chart(
        title, f"Chart: {_plain(title)} ({', '.join(one.name for one in series)})", WIDTH, HEIGHT,
        (LEFT, TOP, RIGHT, BOTTOM), x.label, [(round(_across(x, at), 1), label) for at, label in x.ticks(5)],
        metric(made["id"]).text if "id" in made else "", y.label,
        [(round(_up(y, at), 1), label) for at, label in y.ticks(5)], series, marks, columns,
    )


def _curve(name: str, points: Points, color: str, x: Axis, y: Axis) -> Series:
    tips = [
        (round(_across(x, a), 1), round(_up(y, b), 1), f"{name}: {x.label} {x.format(a)}, {y.label} {y.format(b)}")
        for a, b in points[:: -(-len(points) // _MOST_TIPS)]
    ]
    return Series(name, color, _path(x, y, points), points=tips)


def _path(x: Axis, y: Axis, points: Points) -> str:
    return "M" + "L".join(f"{_across(x, a):.1f} {_up(y, b):.1f}" for a, b in points)


def _across(x: Axis, value: float, left: float = LEFT) -> float:
    return left + x.place(value) * (RIGHT - left)


def _up(y: Axis, value: float) -> float:
    return BOTTOM - y.place(value) * (BOTTOM - TOP)


def _marks_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [mark for mark in made.get("marks") or [] if _is_number(mark.get("x"))]


def _color(name: str, index: int) -> str:
    return COLORS.get(name.split(" ")[0].lower(), SET_COLORS[index % len(SET_COLORS)])


def _axis(label: str, values: Sequence[float], is_log: bool) -> Axis:
    is_share = label in _SHARES or "share" in label.lower()
    if is_share and not is_log:
        return Axis(label, 0.0, 1.0 if max(values) > 0.5 else max(values), False, True)
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


def _shorten(text: str) -> str:
    return text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _plain(text: Text) -> str:
    """Return a text without its elements, for screen readers."""
    if isinstance(text, str):
        return text
    if isinstance(text, (Term, Span)):
        return text.label if isinstance(text, Term) else text.text
    return "".join(map(_plain, text))
