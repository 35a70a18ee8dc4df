"""Images that are not square: one rule, said and counted."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.squares import is_square, say_cut, say_if_not_square
from facesyn_cli.stages import train_fr
from facesyn_cli.training.ldm_inputs import join_faces

WIDE, SQUARE = (encode_png(np.zeros((8, width, 3), np.uint8)) for width in (9, 8))


def test_the_header_tells_and_what_cannot_be_read_is_left_to_who_decodes_it():
    assert is_square(SQUARE) and not is_square(WIDE)
    assert is_square(b"") and is_square(WIDE[:20])


def test_training_sets_are_looked_at_beforehand(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with caplog.at_level(logging.WARNING, "facesyn"):
        say_if_not_square("faces", lambda row: SQUARE, 3)
        say_if_not_square("faces", lambda row: WIDE, 0)
        say_cut("faces", 0, 3)
        assert not caplog.text
        say_if_not_square("faces", lambda row: WIDE if row == 2 else SQUARE, 3)
        assert "faces: 1 of 3 images are not square" in caplog.text
        monkeypatch.setattr("facesyn_cli.data.squares._CHECKED", 5)
        seen = []
        say_if_not_square("many", lambda row: seen.append(row) or WIDE, 1000)
    assert "many: 5 of 5 images checked, out of 1000, are not square" in caplog.text
    assert seen[0] == 0 and seen[-1] == 999


def test_trainings_say_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for k, data in enumerate((WIDE, SQUARE)):
        (tmp_path / f"p{k}").mkdir()
        (tmp_path / f"p{k}" / "0.png").write_bytes(data)
    with caplog.at_level(logging.WARNING, "facesyn"):
        train_fr._open_input(tmp_path)
        join_faces(ImageSet.open(tmp_path), None, 8, 0.0, 1)
    assert caplog.text.count("1 of 2 images are not square; their central squares are taken") == 2
