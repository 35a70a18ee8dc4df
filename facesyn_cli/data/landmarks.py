"""Landmark files of other people: five points a face, one face a line.

    CelebA      `list_landmarks_align_celeba.txt`: number of lines; names of the columns; `000001.jpg x1 y1 ... x5 y5`
    TFace       `pts_list`: `path x1 y1 ... x5 y5 score`
    CSV         `path,x1,y1,...,x5,y5[,score]`, with or without a line of column names

The points are those of `data/alignment.py`, in pixels of the image that the path names. Several lines may
name one image: it shows several faces.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from facesyn_cli.data.alignment import Face
from facesyn_cli.errors import UserError

COLUMNS = ("path", *(f"{axis}{k}" for k in range(1, 6) for axis in "xy"), "score")


def read_landmarks(path: Path) -> dict[str, list[Face]]:
    """Read a landmark file.

    Returns:
        The faces of every image, by its name as the file has it, in the order of the file.

    Raises:
        UserError: The file is missing or malformed (with the line), shorter than it says, or has the points
            in another order.
    """
    faces: dict[str, list[Face]] = {}
    announced, num_rows = None, 0
    for number, fields in _lines(path):
        numbers = _numbers(fields[1:])
        if num_rows == 0 and len(fields) == 1 and fields[0].isdecimal() and len(fields[0]) <= 9:
            announced = int(fields[0])
        elif numbers is not None and len(numbers) in (10, 11):
            score = numbers[10] if len(numbers) == 11 else 1.0
            faces.setdefault(fields[0], []).append(Face(np.array(numbers[:10]).reshape(5, 2), score))
            num_rows += 1
        elif num_rows or any(_is_number(field) for field in fields[1:]):
            raise UserError(
                f"{path} line {number}: a path and 5 points x y (and a score) were expected, "
                f"found {' '.join(fields)[:80]!r}"
            )  # lines of words before the first row name the columns
    if not num_rows:
        raise UserError(f"{path} has no landmarks; lines of a path and 5 points x y (and a score) were expected")
    if announced is not None and announced != num_rows:
        raise UserError(f"{path} has {num_rows} lines of landmarks, its first line announces {announced}")
    _check_order(path, [face for found in faces.values() for face in found])
    return faces


def write_landmarks(rows: Sequence[tuple[str, Face]]) -> str:
    """Return the text of a CSV file that `read_landmarks` reads back exactly."""
    lines = [",".join(COLUMNS)]
    for name, face in rows:
        quoted = f'"{name.replace(chr(34), 2 * chr(34))}"' if any(c in name for c in ',"') else name
        lines.append(",".join([quoted, *(repr(float(v)) for v in (*face.landmarks.ravel(), face.score))]))
    return "\n".join(lines) + "\n"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and fields of every line that is not empty; commas separate where the first row has any."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            is_csv: bool | None = None
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if is_csv is None and len(line.split()) + line.count(",") > 1:
                    is_csv = line.count(",") >= 10
                if is_csv:
                    fields = [field.strip() for field in next(csv.reader([line.strip()]))]
                else:
                    fields = _split_spaces(line)
                yield number, fields
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file; landmarks were expected") from error
    except csv.Error as error:
        raise UserError(f"{path} line {number}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _split_spaces(line: str) -> list[str]:
    """Split at white space; a path may hold spaces, the numbers at the end may not."""
    fields = line.split()
    count = 0
    while count < min(11, len(fields) - 1) and _numbers(fields[len(fields) - count - 1 :]) is not None:
        count += 1
    if count >= 10 and len(fields) > count + 1:
        return [line.strip().rsplit(None, count)[0], *fields[-count:]]
    return fields


def _numbers(fields: Sequence[str]) -> list[float] | None:
    try:
        values = [float(field) for field in fields if field]
    except ValueError:
        return None
    return values if values and all(math.isfinite(v) and abs(v) < 1e9 for v in values) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_order(path: Path, faces: list[Face]) -> None:
    """Left and right as seen in the image: otherwise crops would be upside down or nonsense.

    In the right order the mouth lies to the right of the way from the left to the right eye (y points down),
    however the face is rotated.
    """
    points = np.array([face.landmarks for face in faces])                     # (N, 5, 2)
    eyes = points[:, 1] - points[:, 0]
    down = points[:, 3:].mean(1) - points[:, :2].mean(1)
    turned = eyes[:, 0] * down[:, 1] - eyes[:, 1] * down[:, 0]
    if np.mean(turned <= 0) > 0.5:
        raise UserError(
            f"{path}: the points are no faces, or in another order; expected were, as seen in the image, left eye, "
            "right eye, nose, left and right corner of the mouth"
        )
