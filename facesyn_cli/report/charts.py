"""Charts as inline SVG: curves, histograms and intervals.

Colors are names that the style sheet of the page knows (`blue`, `orange`, `green`, `purple`, `gray`), so a chart
follows the theme; every series has dashes of its own as well, so that color never speaks alone. What
stands at a point appears on hover, tap or focus (`data-tip`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facesyn_cli.report.axes import Axis
from facesyn_cli.report.markup import Markup, element

WIDTH, HEIGHT = 420, 280                      # units of the view box; text is 13 of them, 15 on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 22, 46     # margins around the plot
SET_COLOURS = ("blue", "orange", "green", "purple")
_MOST_TIPS = 48                               # points of one curve that answer a pointer
_ROW = 34                                     # height of one row of an interval chart


@dataclass(frozen=True)
class Series:
    """One curve or histogram.

    Args:
        name: What the legend calls it.
        points: (x, y), in order of x. Of a histogram: (left edge, height).
        color: Name of a color of the page.
        kind: `line`, or `area` for a line with its area filled.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "blue"
    kind: str = "line"


@dataclass(frozen=True)
class Mark:
    """A vertical line that says something about a value of x."""

    value: float
    label: str
    color: str = "gray"


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value and how sure it is; None where there is no value or interval."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    color: str = "blue"


@dataclass(frozen=True)
class Frame:
    """What stands around a chart.

    Args:
        title: Heading.
        about: What is seen, in a sentence or two: text or markup. Also read out in place of the picture.
        legend: Show the names of the series.
    """

    title: str | Markup
    about: str | Markup = ""
    legend: bool = True
    marks: Sequence[Mark] = ()


def curves(frame: Frame, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """Return a chart of curves over a common axis."""
    drawn = [_area(x, y, one) for one in series if one.kind == "area"]
    drawn += [_line(x, y, one, index) for index, one in enumerate(series)]
    drawn += [_tips(x, y, one) for one in series]
    return _figure(frame, series, [_grid(x, y), drawn, _marks(x, frame.marks)])


def histogram(frame: Frame, x: Axis, y: Axis, series: Sequence[Series], width: float) -> Markup:
    """Return overlaid histograms with bins of a common width.

    Args:
        frame: Title and the rest.
        x: Axis of the values.
        y: Axis of the heights.
        series: Points are (left edge, height).
        width: Width of a bin, in units of x.
    """
    heights: dict[float, list[str]] = {}
    shapes = []
    for index, one in enumerate(series):
        corners = [(one.points[0][0], 0.0)] if one.points else []
        for left, height in one.points:
            corners += [(left, height), (left + width, height)]
            heights.setdefault(round(left, 9), []).append(f"{one.name} {y.format(height)}")
        if corners:
            corners.append((corners[-1][0], 0.0))
        steps = Series(one.name, corners, one.color)
        shapes += [_area(x, y, steps), _line(x, y, steps, index)]
    columns = [
        _column(x, left, left + width, f"{x.format(left)} to {x.format(round(left + width, 9))}: {', '.join(found)}")
        for left, found in sorted(heights.items())
    ]
    return _figure(frame, series, [_grid(x, y), shapes, _marks(x, frame.marks), columns])


def intervals(frame: Frame, x: Axis, rows: Sequence[Interval]) -> Markup:
    """Return one row per value: a dot with its interval, names on the left."""
    height = TOP + _ROW * len(rows) + BOTTOM
    left = 130
    parts = [_vertical_grid(x, left, height)]
    for index, row in enumerate(rows):
        middle = TOP + _ROW * (index + 0.5)
        parts.append(element("text", _shorten(row.name, 17), x=left - 8, y=middle + 4, text_anchor="end"))
        if row.value is None:
            parts.append(element("text", "no value", x=left + 6, y=middle + 4, class_="quiet"))
            continue
        tip = f"{row.name}: {x.format(row.value)}"
        if row.low is not None and row.high is not None:
            tip += f" ({x.format(row.low)} to {x.format(row.high)})"
            start, end = _across(x, row.low, left), _across(x, row.high, left)
            parts.append(element("path", d=f"M{start:.1f} {middle}H{end:.1f}", class_=f"whisker stroke-{row.color}"))
        place = _across(x, row.value, left)
        parts.append(element("circle", cx=f"{place:.1f}", cy=middle, r=5.5, class_=f"fill-{row.color}"))
        parts.append(element("rect", x=left, y=middle - _ROW / 2, width=WIDTH - RIGHT - left, height=_ROW,
                             class_="target", data_tip=tip))
    return _figure(frame, [], parts, height)


def _figure(frame: Frame, series: Sequence[Series], parts: Iterable, height: float = HEIGHT) -> Markup:
    legend = None
    if frame.legend and len(series) > 1:
        swatches = [
            element("li", _swatch(one.color, index), one.name) for index, one in enumerate(series)
        ]
        legend = element("ul", swatches, class_="legend")
    names = ", ".join(one.name for one in series)
    spoken = f"Chart: {_plain(frame.title)}" + (f" ({names})" if names else "")
    drawing = element("svg", parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=spoken)
    about = element("p", frame.about, class_="about") if frame.about else None
    return element("figure", element("figcaption", element("h4", frame.title), about), legend, drawing, class_="chart")


def _grid(x: Axis, y: Axis) -> list[Markup]:
    lines = [_vertical_grid(x, LEFT, HEIGHT)]
    for value, label in y.ticks(5):
        place = _up(y, value)
        lines.append(element("path", d=f"M{LEFT} {place:.1f}H{WIDTH - RIGHT}", class_="grid"))
        lines.append(element("text", label, x=LEFT - 6, y=f"{place + 4:.1f}", text_anchor="end"))
    lines.append(element("text", y.label, x=4, y=TOP - 9, class_="label"))
    return lines


def _vertical_grid(x: Axis, left: float, height: float) -> list[Markup]:
    lines = []
    bottom = height - BOTTOM
    for value, label in x.ticks(5 if left == LEFT else 4):
        place = _across(x, value, left)
        lines.append(element("path", d=f"M{place:.1f} {TOP}V{bottom}", class_="grid"))
        lines.append(element("text", label, x=f"{place:.1f}", y=bottom + 17, text_anchor="middle"))
    lines.append(element("path", d=f"M{left} {bottom}H{WIDTH - RIGHT}", class_="axis"))
    middle = (left + WIDTH - RIGHT) / 2
    lines.append(element("text", x.label, x=middle, y=height - 8, text_anchor="middle", class_="label"))
    return lines


def _line(x: Axis, y: Axis, one: Series, index: int) -> Markup | None:
    if not one.points:
        return None
    return element("path", d=_path(x, y, one.points), class_=f"line stroke-{one.color} dash-{index % 4}")


def _area(x: Axis, y: Axis, one: Series) -> Markup | None:
    if not one.points:
        return None
    ends = [(one.points[-1][0], y.low), (one.points[0][0], y.low)]
    return element("path", d=_path(x, y, [*one.points, *ends]) + "Z", class_=f"area fill-{one.color}")


def _path(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_across(x, a):.1f} {_up(y, b):.1f}" for a, b in points)


def _tips(x: Axis, y: Axis, one: Series) -> list[Markup]:
    every = max(1, -(-len(one.points) // _MOST_TIPS))
    return [
        element("circle", cx=f"{_across(x, a):.1f}", cy=f"{_up(y, b):.1f}", r=7, class_=f"point stroke-{one.color}",
                data_tip=f"{one.name}: {x.label} {x.format(a)}, {y.label} {y.format(b)}")
        for a, b in list(one.points)[::every]
    ]


def _column(x: Axis, low: float, high: float, tip: str) -> Markup:
    start, end = _across(x, low), _across(x, high)
    return element("rect", x=f"{start:.1f}", y=TOP, width=f"{max(end - start, 0.1):.1f}", height=HEIGHT - TOP - BOTTOM,
                   class_="target", data_tip=tip)


def _marks(x: Axis, marks: Sequence[Mark]) -> list[Markup]:
    drawn = []
    for index, mark in enumerate(marks):
        place = _across(x, mark.value)
        is_left = x.place(mark.value) > 0.6  # the label stands where there is more room
        drawn.append(element("path", d=f"M{place:.1f} {TOP}V{HEIGHT - BOTTOM}", class_=f"mark stroke-{mark.color}"))
        drawn.append(element("text", mark.label, x=f"{place + (-5 if is_left else 5):.1f}", y=TOP + 12 + 16 * index,
                             text_anchor="end" if is_left else "start", class_="halo"))
    return drawn


def _swatch(color: str, index: int) -> Markup:
    line = element("path", d="M1 6H23", class_=f"line stroke-{color} dash-{index % 4}")
    return element("svg", line, viewBox="0 0 24 12", width=24, height=12, aria_hidden="true")


def _across(x: Axis, value: float, left: float = LEFT) -> float:
    return left + x.place(value) * (WIDTH - RIGHT - left)


def _up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _plain(title: str | Markup) -> str:
    """Return a title without tags, for screen readers."""
    return re.sub("<[^>]*>", "", title) if isinstance(title, Markup) else title
