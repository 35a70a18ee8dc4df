"""Landmark files: three forms, the same faces; wrong files are refused with the line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.data.alignment import TEMPLATE, Face
from facesyn_cli.data.landmarks import COLUMNS, read_landmarks, write_landmarks
from facesyn_cli.errors import UserError

NUMBERS = [" ".join(f"{v:.2f}" for v in (TEMPLATE + shift).ravel()) for shift in (0, 10)]
CELEBA_NAMES = ("lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y "
                "leftmouth_x leftmouth_y rightmouth_x rightmouth_y")


def written(tmp_path: Path, text: str, name: str = "list.txt") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("text", [
    f"2\n{CELEBA_NAMES}\n000001.jpg  {NUMBERS[0]}\n000002.jpg  {NUMBERS[1]}\n",
    f"000001.jpg {NUMBERS[0]} 0.5\n000002.jpg {NUMBERS[1]} 0.5\n",
    f"000001.jpg\t{NUMBERS[0]}\r\n000002.jpg\t{NUMBERS[1]}\r\n",
    f"000001.jpg,{NUMBERS[0].replace(' ', ',')}\n000002.jpg,{NUMBERS[1].replace(' ', ', ')}\n",
    f"\ufeff{','.join(COLUMNS)}\n000001.jpg,{NUMBERS[0].replace(' ', ',')},1\n\n"
    f"000002.jpg,{NUMBERS[1].replace(' ', ',')},1\n",
], ids=["celeba", "pts_list", "tabs", "csv", "csv with names"])
def test_all_forms_give_the_same_faces(tmp_path: Path, text: str) -> None:
    faces = read_landmarks(written(tmp_path, text))
    assert list(faces) == ["000001.jpg", "000002.jpg"]
    for shift, found in zip((0, 10), faces.values(), strict=True):
        np.testing.assert_allclose(found[0].landmarks, TEMPLATE + shift, atol=0.006)


def test_paths_with_spaces_and_several_faces(tmp_path: Path) -> None:
    lines = f"my photos/a b.jpg {NUMBERS[0]} 0.7\nmy photos/a b.jpg {NUMBERS[1]} 0.9\n"
    faces = read_landmarks(written(tmp_path, lines))
    assert [face.score for face in faces["my photos/a b.jpg"]] == [0.7, 0.9]


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    rows = [(name, Face(TEMPLATE + random.rand(5, 2), float(random.rand()))) for name in ("a/b.png", 'x, "y".jpg', "z")]
    faces = read_landmarks(written(tmp_path, write_landmarks(rows), "l.csv"))
    for name, face in rows:
        assert np.array_equal(faces[name][0].landmarks, face.landmarks) and faces[name][0].score == face.score


SWAPPED = " ".join(f"{v:.2f}" for v in TEMPLATE[[1, 0, 2, 4, 3]].ravel())


@pytest.mark.parametrize(("text", "says"), [
    ("", "no landmarks"),
    ("just some words\nand more\n", "no landmarks"),
    (f"3\n{CELEBA_NAMES}\na.jpg {NUMBERS[0]}\n", "has 1 lines of landmarks, its first line announces 3"),
    (f"a.jpg {NUMBERS[0]}\nb.jpg 1 2 3\n", "line 2"),
    (f"a.jpg {NUMBERS[0]}\nb.jpg {NUMBERS[0].replace('5', 'x')}\n", "line 2"),
    ("a.jpg 1 2 3 4\n", "line 1"),
    (f"a.jpg {NUMBERS[0].rsplit(' ', 1)[0]} nan\n", "line 1"),
    (f"a.jpg {SWAPPED}\n", "another order"),
    ("a.jpg" + " 7" * 10 + "\n", "no faces"),
    (f"a.jpg {NUMBERS[0].rsplit(' ', 1)[0]} 1e300\n", "line 1"),
])
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_landmarks(written(tmp_path, text))


def planar(points: np.ndarray) -> str:
    """`x1 ... x5 y1 ... y5`, as MTCNN gives them."""
    return " ".join(f"{v:.2f}" for v in points.T.ravel())


def made_faces(count: int, seed: int = 0) -> list[np.ndarray]:
    """Return faces of many sizes, places and rolls, with some noise."""
    random, found = np.random.RandomState(seed), []
    for _ in range(count):
        angle, scale = random.uniform(-0.6, 0.6), random.uniform(0.5, 4)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        found.append((TEMPLATE + random.normal(0, 2, (5, 2))) @ turn.T + random.uniform(100, 900, 2))
    return found


def test_the_order_of_the_numbers_is_found_and_said(tmp_path: Path, caplog) -> None:
    """Read as x1 y1 x2 y2 ..., half of such lines pass for faces."""
    faces = made_faces(12)
    text = "".join(f"{k}.jpg {planar(face)}\n" for k, face in enumerate(faces))
    with caplog.at_level(logging.INFO, logger="facesyn"):
        found = read_landmarks(written(tmp_path, text))
    for k, face in enumerate(faces):
        np.testing.assert_allclose(found[f"{k}.jpg"][0].landmarks, face, atol=0.006)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "the numbers of a line are in the order x1 ... x5 y1 ... y5"]


def test_lines_that_are_no_faces_are_counted(tmp_path: Path, caplog) -> None:
    lines = [" ".join(f"{v:.2f}" for v in face.ravel()) for face in made_faces(9)]
    lines += [planar(face) for face in made_faces(2, 1)]
    found = read_landmarks(written(tmp_path, "".join(f"{k}.jpg {line}\n" for k, line in enumerate(lines))))
    assert len(found) == 11 and "2 of 11 lines are no faces; they are left out" in caplog.text


@pytest.mark.parametrize(("change", "says"), [
    (lambda f: f[[1, 0, 2, 4, 3]], "left and right, or x and y, exchanged"),
    (lambda f: f[:, ::-1], "left and right, or x and y, exchanged"),
    (lambda f: f[[2, 0, 3, 1, 4]], "the points are no faces, or in another order"),
    (lambda f: f / 1000, "as shares of the image's sides; pixels were expected"),
])
def test_other_orders_and_units_are_refused(tmp_path: Path, change, says: str) -> None:
    lines = (" ".join(f"{v:.5f}" for v in change(face).ravel()) for face in made_faces(12))
    with pytest.raises(UserError, match=says):
        read_landmarks(written(tmp_path, "".join(f"{k}.jpg {line}\n" for k, line in enumerate(lines))))


def test_not_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\x00\x81" * 20)
    with pytest.raises(UserError, match="not a text file"):
        read_landmarks(tmp_path / "l.txt")
    with pytest.raises(UserError, match="none.txt"):
        read_landmarks(tmp_path / "none.txt")


def test_rotated_faces_are_in_the_right_order(tmp_path: Path) -> None:
    turned = " ".join(f"{v:.2f}" for v in (200 - TEMPLATE).ravel())  # upside down, not mirrored
    assert read_landmarks(written(tmp_path, f"a.jpg {turned}\n"))
