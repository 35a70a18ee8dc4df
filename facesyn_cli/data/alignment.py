"""Cuts a face out of a photo onto the ArcFace template, from five landmarks.

The points are, as seen in the image: left eye, right eye, nose tip, left and right corner of the mouth
(what detectors call "right eye" of the person is the left one of the image). Points are in pixels, with
integers at the centers of pixels, as landmark files and OpenCV have them.

A similarity transform takes a point z = x + iy to a z + b; among all of them, the one with least squared
error from points z_k to points w_k is

    a = sum conj(z_k - mean z) (w_k - mean w) / sum |z_k - mean z|^2,     b = mean w - a mean z

which is Umeyama 1991 (IEEE PAMI 13(4), Eqs. 40 to 42) in two dimensions, without mirror images. It explains the share
|a|^2 sum |z_k - mean z|^2 / sum |w_k - mean w|^2 of the template: 0.9 to 1 where the points are those of a face.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.data.pixels import UnreadableImage

TEMPLATE_SIDE = 112
MIN_EXPLAINED = 0.8  # of the template by the landmarks of a face: real ones explain 0.9 and more
SURE_SCORE = 0.9     # YuNet: large upright faces score 0.9 or more, rotated ones at most 0.9
TURN_GAIN = 0.02     # increase of the score that a rotation must bring; upright faces score 0.03 higher
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)  # ArcFace, for crops of 112 x 112


class NoFace(UnreadableImage):
    """The image has no face that can be cut out; `reason` is one of `REASONS`, the message gives details."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


REASONS = ("no_face", "too_small", "no_landmarks")


class FaceChoice(BaseModel):
    """Settings of the choice of a face in a photo, and of its crop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pick: Literal["largest", "central"] = affects_result(
        "largest", "which of several faces: the largest, or the central one"
    )
    min_size: float = affects_result(
        30.0, "leave out smaller faces: pixels of the photo along the side of the crop", ge=0
    )
    antialias: bool = affects_result(
        False, "average pixels before faces that are at least twice too large are shrunk; published crops do not"
    )


class DetectFaces(FaceChoice):
    """The section `align` of stages that take photos where they otherwise take crops."""

    detector: Path = input_path(..., "YuNet face detector, an .onnx file")


@dataclass(frozen=True)
class Face:
    """One face in an image.

    Args:
        landmarks: (5, 2) float64, x and y in pixels.
        score: Confidence of the detector; 1 for given landmarks.
    """

    landmarks: NDArray[np.float64]
    score: float = 1.0


@dataclass(frozen=True)
class AlignedFace:
    """A face cut out of an image.

    Args:
        pixels_u8: (S, S, 3) uint8, RGB.
        face: Which one it is.
        size: Side of the crop in pixels of the photo.
        num_faces: How many faces the photo has.
        quarter_turns: How often the photo was turned by 90 degrees, against the clock, to find them.
    """

    pixels_u8: NDArray[np.uint8]
    face: Face
    size: float
    num_faces: int
    quarter_turns: int = 0


def template(side: int) -> NDArray[np.float64]:
    """Return the (5, 2) ArcFace points for crops of another side: those of the 112 crop after resizing it."""
    return (TEMPLATE + 0.5) * (side / TEMPLATE_SIDE) - 0.5


def explained_share(points: NDArray) -> NDArray[np.float64]:
    """Return how much of the template similarity transforms of landmarks explain, in [0, 1]; 0 where they coincide.

    Args:
        points: (..., 5, 2) finite landmarks.
    """
    points = np.asarray(points, np.float64)
    z, w = (p[..., 0] + 1j * p[..., 1] for p in (points, TEMPLATE))
    z, w = (v - v.mean(-1, keepdims=True) for v in (z, w))
    spread = np.sum(np.abs(z) ** 2, axis=-1)
    along = np.abs(np.sum(np.conj(z) * w, axis=-1)) ** 2
    return along / np.where(spread < 1e-6, np.inf, spread) / np.sum(np.abs(w) ** 2)


def similarity_transform(points: NDArray, targets: NDArray) -> NDArray[np.float64]:
    """Return the (2, 3) matrix of the similarity transform with least squared error.

    Args:
        points: (K, 2) source points, K >= 2.
        targets: (K, 2) points they are mapped to.

    Raises:
        ValueError: The points are not finite, coincide, or fit the targets only mirrored.
    """
    points, targets = np.asarray(points, np.float64), np.asarray(targets, np.float64)
    if not np.isfinite(points).all() or np.abs(points).max() > 1e9:
        raise ValueError("the landmarks are not finite numbers")
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (points, targets))
    from_center, to_center = z - z.mean(), w - w.mean()
    spread = np.sum(np.abs(from_center) ** 2)
    if spread < 1e-6:
        raise ValueError("the landmarks coincide")
    a = np.sum(np.conj(from_center) * to_center) / spread
    if np.abs(a) ** 2 * spread < 0.2 * np.sum(np.abs(to_center) ** 2):  # the share of the targets it explains
        raise ValueError("the landmarks do not form a face")
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(pixels_u8: NDArray[np.uint8], matrix: NDArray, side: int, antialias: bool = False) -> NDArray[np.uint8]:
    """Move an image by an affine map and cut out the corner of the given side; bilinear, black outside.

    Args:
        pixels_u8: (H, W, 3) uint8.
        matrix: (2, 3) from pixels of the image to pixels of the result.
        side: Side S of the result.
        antialias: Average blocks of pixels first where the map shrinks at least by two.

    Returns:
        (S, S, 3) uint8.
    """
    linear, shift = np.asarray(matrix, np.float64)[:, :2], np.asarray(matrix, np.float64)[:, 2]
    back = np.linalg.inv(linear)
    offset = -back @ shift
    factor = int(math.sqrt(abs(np.linalg.det(back))) + 1e-6) if antialias else 1
    if factor > 1:
        pixels_u8 = np.asarray(Image.fromarray(np.ascontiguousarray(pixels_u8)).reduce(factor))
        back, offset = back / factor, (offset + 0.5) / factor - 0.5
    rows, columns = np.mgrid[:side, :side].reshape(2, -1)
    at = back @ np.stack([columns, rows]) + offset[:, None]                   # (2, S*S) x, y in the image
    low = np.floor(at + 1e-9)
    part = (at - low)[:, :, None].clip(0, 1)                                  # (2, S*S, 1)
    (x, y), height, width = low, *pixels_u8.shape[:2]

    def pixel(x: NDArray, y: NDArray) -> NDArray[np.float64]:
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        found = pixels_u8[np.where(inside, y, 0).astype(np.intp), np.where(inside, x, 0).astype(np.intp)]
        return found * inside[:, None].astype(np.float64)

    upper = pixel(x, y) * (1 - part[0]) + pixel(x + 1, y) * part[0]
    lower = pixel(x, y + 1) * (1 - part[0]) + pixel(x + 1, y + 1) * part[0]
    return (upper * (1 - part[1]) + lower * part[1] + 0.5).astype(np.uint8).reshape(side, side, 3)


def align_face(pixels_u8: NDArray[np.uint8], faces: Sequence[Face], choice: FaceChoice, side: int) -> AlignedFace:
    """Cut the chosen face out of a photo.

    Args:
        pixels_u8: (H, W, 3) uint8, RGB.
        faces: What was found in it.
        choice: Which one to take.
        side: Side of the crop.

    Raises:
        NoFace: There is none, or none large enough.
    """
    found = []
    for face in faces:
        with suppress(ValueError):
            matrix = similarity_transform(face.landmarks, template(side))
            if explained_share(face.landmarks) >= MIN_EXPLAINED:
                found.append((face, matrix, side / math.hypot(matrix[0, 0], matrix[1, 0])))
    if not found:
        raise NoFace("no_face", "no face was found" if not faces else "the landmarks do not form a face")
    large = [item for item in found if item[2] >= choice.min_size]
    if not large:
        largest = max(size for _, _, size in found)
        raise NoFace("too_small", f"the largest face has {largest:.0f} pixels, at least {choice.min_size:g} are wanted")
    if choice.pick == "largest":
        face, matrix, size = max(large, key=lambda item: item[2])
    else:
        center = (np.array(pixels_u8.shape[1::-1]) - 1) / 2
        face, matrix, size = min(large, key=lambda item: np.linalg.norm(item[0].landmarks.mean(0) - center))
    return AlignedFace(warp(pixels_u8, matrix, side, choice.antialias), face, size, len(found))


class FaceAligner:
    """Finds the face of a photo and cuts it out; thread-safe if `find` is.

    A photo may be rotated without an EXIF orientation. A detector also finds faces on their side or upside down, with
    wrong landmarks, but gives upright ones a higher score. When the score is low, the photo is rotated by 90, 180 and
    270 degrees, and the orientation with the highest score is taken.

    Args:
        find: (H, W, 3) uint8 RGB -> (5, 2) landmarks and score of every face.
        choice: Which face to take.
        side: Side of the crops.

    Attributes:
        num_turned: How many photos were turned so far.
    """

    def __init__(
        self,
        find: Callable[[NDArray[np.uint8]], Sequence[tuple[NDArray[np.float64], float]]],
        choice: FaceChoice,
        side: int = TEMPLATE_SIDE,
    ) -> None:
        self._find, self._choice, self._side = find, choice, side
        self._lock = threading.Lock()
        self.num_turned = 0

    def __call__(self, pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the crop (S, S, 3) of a photo.

        Raises:
            NoFace: There is none, or none large enough.
        """
        return self.align(pixels_u8).pixels_u8

    def align(self, pixels_u8: NDArray[np.uint8]) -> AlignedFace:
        """Return the crop of a photo with the face it shows; raises as calling the aligner does."""
        faces, turns = self._upright_faces(pixels_u8)
        aligned = align_face(pixels_u8, faces, self._choice, self._side)
        with self._lock:
            self.num_turned += turns > 0
        return replace(aligned, quarter_turns=turns)

    def _upright_faces(self, pixels_u8: NDArray[np.uint8]) -> tuple[list[Face], int]:
        """Return the faces, in pixels of the photo as it is stored, and the quarter turns that found them."""
        best, turns = list(self._find(pixels_u8)), 0
        if _top_score(best) < SURE_SCORE:
            for count in (1, 2, 3):
                found = list(self._find(np.ascontiguousarray(np.rot90(pixels_u8, count))))
                if _top_score(found) > _top_score(best) + (TURN_GAIN if turns == 0 else 0):
                    best, turns = found, count
        size = pixels_u8.shape[1::-1]
        return [Face(turned_back(landmarks, turns, size), score) for landmarks, score in best], turns


def turned_back(points: NDArray[np.float64], turns: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return points found in a turned image as points of the image itself.

    Args:
        points: (K, 2) x, y in pixels of the turned image.
        turns: How often it was turned by 90 degrees against the clock, as `numpy.rot90` does.
        size: Width and height of the image itself.
    """
    for step in reversed(range(turns)):
        width = size[step % 2]  # of what this turn was made of
        points = np.stack([width - 1 - points[:, 1], points[:, 0]], axis=1)
    return points


def _top_score(found: Sequence[tuple[NDArray[np.float64], float]]) -> float:
    return max((score for _, score in found), default=0.0)
