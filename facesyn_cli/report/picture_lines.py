"""Places of boxes in rows, and the lines between them, for the picture of a pipeline.

A line to the right neighbor is straight. Any other line leaves its box at the bottom, runs along a lane of its own in
the gutter below the row, passes rows in the gap between two columns, and enters its reader from above, or from below
where the reader is in the same row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MARGIN, GAP = 28, 44        # around the picture, and between two columns
ARROW_Y = 26                # of a straight line, below the top of its boxes
_GUTTER, _LANE, _ARROW = 20, 12, 14  # empty gutter's half, distance of lanes, room for an arrowhead
_EXIT = 0.62                # where a line leaves a box, of its width; readers are entered elsewhere
_CHANNEL = 9                # distance of two lines in one gap
_CORNER = 8.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """Row and column of a box, from 0."""

    row: int
    column: int


@dataclass
class Layout:
    """The geometry of a picture.

    Args:
        lefts: Left side of each column.
        tops: Top of each row.
        bottom: Lower end of the boxes and lines.
        lines: Corners of each line, from the box that is read to its reader.
    """

    lefts: list[float]
    tops: list[float] = field(default_factory=list)
    bottom: float = 0.0
    lines: list[list[Point]] = field(default_factory=list)


def lay_out(
    places: Mapping[str, Place], reads: Mapping[str, Sequence[str]], heights: Sequence[float], width: float,
    columns: int, top: float,
) -> Layout:
    """Return the places of all boxes and lines.

    Args:
        places: Box -> its place, in the order of the rows.
        reads: Box -> the boxes that it reads.
        heights: Height of the boxes of each row.
        width: Width of a box.
        columns: Number of columns.
        top: Top of the first row.
    """
    layout = Layout([MARGIN + k * (width + GAP) for k in range(columns)])
    edges = [(source, reader) for reader, sources in reads.items() for source in sources]
    bent = [edge for edge in edges if not _is_straight(places[edge[0]], places[edge[1]])]
    lanes = _lanes(places, bent)
    for row, height in enumerate(heights):
        layout.tops.append(top)
        top += height
        layout.bottom = top + (_GUTTER + _LANE * len(lanes[row]) if lanes[row] else 0)
        top += _GUTTER + _LANE * len(lanes[row]) + _ARROW
    channels = _channels(places, bent, layout, columns)
    entries = _entries(places, bent, layout, width, heights)
    for source, reader in edges:
        start, end = places[source], places[reader]
        if _is_straight(start, end):
            y = layout.tops[start.row] + ARROW_Y
            layout.lines.append([(layout.lefts[start.column] + width, y), (layout.lefts[end.column], y)])
            continue
        x, y = layout.lefts[start.column] + _EXIT * width, layout.tops[start.row] + heights[start.row]
        points = [(x, y), (x, _lane_y(layout, lanes, heights, start.row, source))]
        if end.row > start.row + 1:
            low = _lane_y(layout, lanes, heights, end.row - 1, source)
            points += [(channels[source, reader], points[-1][1]), (channels[source, reader], low)]
        entry = entries[source, reader]
        layout.lines.append([*points, (entry[0], points[-1][1]), entry])
    return layout


def rounded_path(points: Sequence[Point]) -> str:
    """Return a line with rounded corners as the data of an SVG path."""
    corners = [p for k, p in enumerate(points) if k == 0 or p != points[k - 1]]
    text = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        (ax, ay), (bx, by) = _towards(corner, before), _towards(corner, after)
        text += f"L{ax:.1f} {ay:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {bx:.1f} {by:.1f}"
    return f"{text}L{corners[-1][0]:.1f} {corners[-1][1]:.1f}"


def _is_straight(start: Place, end: Place) -> bool:
    return start.row == end.row and end.column == start.column + 1


def _lanes(places: Mapping[str, Place], bent: Sequence[tuple[str, str]]) -> dict[int, list[str]]:
    """Return, for the gutter below each row, the boxes whose lines run in it, the upper lanes first."""
    found: dict[int, set[str]] = defaultdict(set)
    for source, reader in bent:
        start, end = places[source].row, places[reader].row
        found[start].add(source)
        if end > start + 1:
            found[end - 1].add(source)
    lanes: dict[int, list[str]] = defaultdict(list)
    for row, sources in found.items():
        lanes[row] = sorted(sources, key=lambda name: (places[name].column, places[name].row))
    return lanes


def _lane_y(
    layout: Layout, lanes: Mapping[int, list[str]], heights: Sequence[float], row: int, source: str
) -> float:
    return layout.tops[row] + heights[row] + _GUTTER - 4 + _LANE * lanes[row].index(source)


def _channels(
    places: Mapping[str, Place], bent: Sequence[tuple[str, str]], layout: Layout, columns: int
) -> dict[tuple[str, str], float]:
    """Return the x at which each line that passes a row does so."""
    gaps: dict[int, list[str]] = defaultdict(list)
    of_line = {}
    for source, reader in bent:
        start, end = places[source], places[reader]
        if end.row > start.row + 1:
            gap = min(end.column if end.column < start.column else start.column, columns - 2)
            of_line[source, reader] = gap
            if source not in gaps[gap]:
                gaps[gap].append(source)
    width = layout.lefts[1] - layout.lefts[0] - GAP if columns > 1 else 0.0
    return {
        (source, reader): layout.lefts[gap] + width + GAP / 2
        + _CHANNEL * (gaps[gap].index(source) - (len(gaps[gap]) - 1) / 2)
        for (source, reader), gap in of_line.items()
    }


def _entries(
    places: Mapping[str, Place], bent: Sequence[tuple[str, str]], layout: Layout, width: float,
    heights: Sequence[float],
) -> dict[tuple[str, str], Point]:
    """Return the point at which each line enters its reader."""
    sides: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for source, reader in bent:
        sides[reader, places[source].row == places[reader].row].append(source)
    found = {}
    for (reader, is_below), sources in sides.items():
        place = places[reader]
        y = layout.tops[place.row] + (heights[place.row] if is_below else 0)
        ordered = sorted(sources, key=lambda name: (places[name].column, places[name].row))
        for k, source in enumerate(ordered, 1):
            share = 0.3 * k / len(ordered) if is_below else k / (len(ordered) + 1)
            found[source, reader] = layout.lefts[place.column] + share * width, y
    return found


def _towards(corner: Point, other: Point) -> Point:
    """Return the point of the line from a corner where its rounding begins."""
    length = abs(other[0] - corner[0]) + abs(other[1] - corner[1])
    share = min(_CORNER, length / 2) / length
    return corner[0] + (other[0] - corner[0]) * share, corner[1] + (other[1] - corner[1]) * share
