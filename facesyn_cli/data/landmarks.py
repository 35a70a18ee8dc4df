"""Reads and writes landmark files: five points a face, one face a line.

    CelebA      `list_landmarks_align_celeba.txt`: number of lines; names of the columns; `000001.jpg x1 y1 ... x5 y5`
    TFace       `pts_list`: `path x1 y1 ... x5 y5 score`
    CSV         `path,x1,y1,...,x5,y5[,score]`, with or without a line of column names

The points are those of `data/alignment.py`, in pixels of the image that the path names. Several lines may name one
image with several faces. Some lists have the order `x1 ... x5 y1 ... y5` (MTCNN): the order is the one in which the
points of all lines together explain more of the template.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.console import log
from facesyn_cli.data.alignment import MIN_EXPLAINED, Face, explained_share
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import read_lines

_TYPICAL = 0.85  # of the template that the median line explains: real faces 0.98, wrong orders 0.3 to 0.8
COLUMNS = ("path", *(f"{axis}{k}" for k in range(1, 6) for axis in "xy"), "score")


def read_landmarks(path: Path) -> dict[str, list[Face]]:
    """Read a landmark file.

    Returns:
        The faces of every image, by its name as the file has it, in the order of the file.

    Raises:
        UserError: The file is missing or malformed (with the line), shorter than announced, or has the points in
            another order.
    """
    names: list[str] = []
    values, scores = array("d"), array("d")
    announced = None
    for number, fields in _lines(path):
        numbers = _numbers(fields[1:])
        if not names and len(fields) == 1 and fields[0].isdecimal() and len(fields[0]) <= 9:
            announced = int(fields[0])
        elif numbers is not None and len(numbers) in (10, 11):
            names.append(fields[0])
            values.extend(numbers[:10])
            scores.append(numbers[10] if len(numbers) == 11 else 1.0)
        elif names or any(_is_number(field) for field in fields[1:]):
            raise UserError(
                f"{path} line {number}: a path and 5 points x y (and a score) were expected, "
                f"found {' '.join(fields)[:80]!r}"
            )  # lines of words before the first row name the columns
    if not names:
        raise UserError(f"{path} has no landmarks; lines of a path and 5 points x y (and a score) were expected")
    if announced is not None and announced != len(names):
        raise UserError(f"{path} has {len(names)} lines of landmarks, its first line announces {announced}")
    points = _in_order(path, np.frombuffer(values).reshape(-1, 10))
    faces: dict[str, list[Face]] = {}
    for name, landmarks, score in zip(names, points, scores, strict=True):
        faces.setdefault(name, []).append(Face(landmarks, score))
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
    is_csv: bool | None = None
    for number, line in enumerate(read_lines(path, "a list of landmarks"), 1):
        if not line.strip():
            continue
        if is_csv is None and len(line.split()) + line.count(",") > 1:
            is_csv = line.count(",") >= 10
        try:
            fields = next(csv.reader([line.strip()])) if is_csv else _split_spaces(line)
        except csv.Error as error:
            raise UserError(f"{path} line {number}: {error}") from error
        yield number, [field.strip() for field in fields]


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


def _in_order(path: Path, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points (N, 5, 2) of (N, 10) numbers, in the order that makes them faces.

    Left and right are as seen in the image. Exchanged, or with x and y exchanged, the points of a face are those of its
    mirror image, which no similarity transform brings to the template.

    Raises:
        UserError: No known order makes them faces, or they are no pixels.
    """
    orders = {
        "x1 y1 ... x5 y5": values.reshape(-1, 5, 2),
        "x1 ... x5 y1 ... y5": values.reshape(-1, 2, 5).swapaxes(1, 2),
    }
    shares = {name: explained_share(points) for name, points in orders.items()}
    name = max(shares, key=lambda order: float(np.median(shares[order])))
    typical = float(np.median(shares[name]))
    if typical < _TYPICAL:
        mirrored = max(float(np.median(explained_share(points[:, [1, 0, 2, 4, 3]]))) for points in orders.values())
        hint = "; they are faces with left and right, or x and y, exchanged" if mirrored >= _TYPICAL else ""
        raise UserError(
            f"{path}: the points are no faces, or in another order (they explain {typical:.2f} of a face, real ones at "
            f"least 0.9){hint}; expected were, as seen in the image, left eye, right eye, nose, left and right "
            "corner of the mouth"
        )
    if np.abs(values).max() <= 2:
        raise UserError(f"{path}: the points lie between {values.min():g} and {values.max():g}, as shares of the "
                        "image's sides; pixels were expected")
    if name != next(iter(orders)):
        log.info(f"{path}: the numbers of a line are in the order {name}")
    strange = int(np.count_nonzero(shares[name] < MIN_EXPLAINED))
    if strange:
        log.warning(f"{path}: {strange} of {len(values)} lines are no faces; they are left out")
    return orders[name]
