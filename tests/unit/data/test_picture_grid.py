"""Grids of pictures: places, empty places, and the mark of the PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.preview_pictures import HEAD_BYTES, is_strip
from facesyn_cli.data.picture_grid import picture_grid, write_marked_png


def test_grid_lays_rows_below_each_other():
    pictures = np.zeros((2, 3, 4, 4, 3), dtype=np.uint8)
    pictures[1, 2] = 7
    canvas = picture_grid(pictures, 4)
    assert canvas.shape == (10, 16, 3)
    assert (canvas[6:, 12:] == 7).all() and (canvas[:4, :4] == 0).all() and (canvas[4:6] == 255).all()


def test_places_may_be_empty_and_pictures_are_resized():
    dark = np.zeros((8, 8, 3), dtype=np.uint8)
    canvas = picture_grid([[dark], [None, dark]], 4, gap=0)
    assert canvas[..., 0].tolist() == [[0] * 4 + [255] * 4] * 4 + [[255] * 4 + [0] * 4] * 4


def test_readers_of_image_sets_know_the_mark(tmp_path: Path):
    write_marked_png(tmp_path / "strip.png", np.zeros((8, 8, 3), dtype=np.uint8))
    assert is_strip("strip.png", lambda: (tmp_path / "strip.png").read_bytes()[:HEAD_BYTES])
