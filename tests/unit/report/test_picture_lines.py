"""Lines of the picture of a pipeline: they begin and end at their boxes and pass through none."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from facesyn_cli.report.picture_lines import Layout, Place, lay_out, rounded_path

WIDTH, COLUMNS = 270.0, 3


def random_graph(seed: int) -> tuple[dict[str, Place], dict[str, list[str]], list[float]]:
    rng = random.Random(seed)
    count = rng.randint(2, 14)
    places = {str(k): Place(k // COLUMNS, k % COLUMNS) for k in range(count)}
    reads = {str(k): [str(j) for j in rng.sample(range(k), min(k, rng.randint(0, 3)))] for k in range(count)}
    return places, reads, [rng.uniform(80, 200) for _ in range(-(-count // COLUMNS))]


def boxes(layout: Layout, places: dict[str, Place], heights: list[float]) -> list[tuple[float, float, float, float]]:
    return [(layout.lefts[p.column], layout.tops[p.row], layout.lefts[p.column] + WIDTH,
             layout.tops[p.row] + heights[p.row]) for p in places.values()]


@pytest.mark.parametrize("seed", range(40))
def test_lines_run_between_the_boxes(seed: int) -> None:
    places, reads, heights = random_graph(seed)
    layout = lay_out(places, reads, heights, WIDTH, COLUMNS, 80.0)
    edges = [(source, reader) for reader, sources in reads.items() for source in sources]
    assert len(layout.lines) == len(edges)
    found = boxes(layout, places, heights)
    for (source, reader), points in zip(edges, layout.lines, strict=True):
        for name, (x, y) in ((source, points[0]), (reader, points[-1])):
            left, top, right, bottom = found[list(places).index(name)]
            assert left <= x <= right and top <= y <= bottom and (x in (left, right) or y in (top, bottom))
        for (ax, ay), (bx, by) in pairwise(points):
            assert ax == bx or ay == by, "lines are horizontal or vertical"
            for left, top, right, bottom in found:
                assert min(ax, bx) >= right or max(ax, bx) <= left or min(ay, by) >= bottom or max(ay, by) <= top
            assert max(ay, by) <= layout.bottom


def test_lines_of_two_boxes_share_no_lane() -> None:
    places, reads, heights = random_graph(7)
    layout = lay_out(places, reads, heights, WIDTH, COLUMNS, 80.0)
    lanes: dict[float, set[tuple[float, float]]] = {}
    for points in layout.lines:
        for (ax, ay), (bx, by) in pairwise(points):
            if ay == by and ax != bx and len(points) > 2:
                lanes.setdefault(ay, set()).add(points[0])
    assert lanes and all(len(starts) == 1 for starts in lanes.values())


def test_corners_are_rounded_and_ends_stay() -> None:
    path = rounded_path([(0, 0), (0, 20), (30, 20), (30, 20), (30, 22)])
    assert path == "M0.0 0.0L0.0 12.0Q0.0 20.0 8.0 20.0L22.0 20.0Q30.0 20.0 30.0 21.0L30.0 22.0"
