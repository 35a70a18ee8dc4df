"""Similarity transforms against closed forms and Umeyama's; warping against a float64 bilinear of its own."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.data.alignment import (
    MIN_EXPLAINED,
    TEMPLATE,
    Face,
    FaceAligner,
    FaceChoice,
    NoFace,
    align_face,
    explained_share,
    similarity_transform,
    template,
    warp,
)


def rotation(angle: float, scale: float = 1.0) -> np.ndarray:
    return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def umeyama(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Umeyama 1991, Eqs. 40-42, by singular values as published, for dimension 2."""
    mu_x, mu_y = points.mean(0), targets.mean(0)
    covariance = (targets - mu_y).T @ (points - mu_x) / len(points)
    u, d, vt = np.linalg.svd(covariance)
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    r = u @ s @ vt
    c = np.trace(np.diag(d) @ s) / ((points - mu_x) ** 2).sum(1).mean()
    return np.column_stack([c * r, mu_y - c * r @ mu_x])


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.3, np.pi / 2, 3.0])
def test_exact_similarity_is_found(angle: float) -> None:
    linear, shift = rotation(angle, 2.7), np.array([31.0, -7.5])
    matrix = similarity_transform(TEMPLATE, TEMPLATE @ linear.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([linear, shift]), rtol=0, atol=1e-12)


def test_least_squares_equals_umeyama() -> None:
    random = np.random.RandomState(0)
    for _ in range(50):
        points = (TEMPLATE @ rotation(random.uniform(-3, 3), random.uniform(0.2, 9)).T) + random.uniform(-99, 99, 2)
        points = points + random.normal(0, 4, points.shape)
        np.testing.assert_allclose(similarity_transform(points, TEMPLATE), umeyama(points, TEMPLATE), atol=1e-9)


def test_no_other_similarity_is_better() -> None:
    points = TEMPLATE + np.random.RandomState(1).normal(0, 3, (5, 2))
    best = similarity_transform(points, TEMPLATE)

    def error(matrix: np.ndarray) -> float:
        return float(((points @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE) ** 2).sum())

    for step in np.eye(4) * 1e-4:
        for sign in (1, -1):
            da, db, dx, dy = sign * step
            assert error(best + np.array([[da, -db, dx], [db, da, dy]])) > error(best)


@pytest.mark.parametrize("points", [
    np.full((5, 2), 3.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf), TEMPLATE * [-1, 1],
])
def test_points_that_make_no_face(points: np.ndarray) -> None:
    if np.isfinite(points).all() and np.ptp(points) > 0:  # a mirror image: rotation alone explains next to nothing
        assert np.hypot(*umeyama(points, TEMPLATE)[:, 0]) ** 2 < 0.2
    with pytest.raises(ValueError, match="landmarks"):
        similarity_transform(points, TEMPLATE)


def test_template_of_another_side_is_that_of_the_resized_crop() -> None:
    assert np.array_equal(template(112), TEMPLATE)
    np.testing.assert_allclose((template(224) + 0.5) / 2, TEMPLATE + 0.5, atol=1e-12)


def test_integer_shift_copies_pixels_exactly() -> None:
    image = np.random.RandomState(0).randint(0, 256, (40, 50, 3)).astype(np.uint8)
    assert np.array_equal(warp(image, np.array([[1.0, 0, -7], [0, 1, -4]]), 16), image[4:20, 7:23])
    quarter = warp(image[:16, :16], np.array([[0.0, -1, 15], [1, 0, 0]]), 16)     # (x, y) -> (15 - y, x)
    assert np.array_equal(quarter, np.rot90(image[:16, :16], -1))


def test_warp_is_bilinear() -> None:
    """An independent bilinear interpolation in float64 with integer pixel centers."""
    random = np.random.RandomState(3)
    image = np.kron(random.randint(0, 256, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    matrix = np.column_stack([rotation(0.3, 0.8), [20.0, -9.0]])
    x, y = np.meshgrid(np.arange(48.0), np.arange(48.0))
    source = (np.stack([x, y], -1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    low = np.floor(source).astype(int)
    inside = ((low >= 0) & (low < 95)).all(-1)
    fx, fy = np.moveaxis(source - low, -1, 0)[..., None]
    lx, ly = np.clip(np.moveaxis(low, -1, 0), 0, 94)
    big = image.astype(np.float64)
    expected = (big[ly, lx] * (1 - fx) * (1 - fy) + big[ly, lx + 1] * fx * (1 - fy)
                + big[ly + 1, lx] * (1 - fx) * fy + big[ly + 1, lx + 1] * fx * fy)
    found = warp(image, matrix, 48).astype(np.float64)
    assert inside.mean() > 0.5
    assert np.abs(found - expected)[inside].max() <= 0.5 + 1e-6, "rounded to gray levels, nothing else"


def test_warp_agrees_with_opencv() -> None:
    import cv2
    image = np.kron(np.random.RandomState(3).randint(0, 256, (20, 20, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    matrix = np.column_stack([rotation(-0.2, 0.6), [5.0, 12.0]])
    theirs = cv2.warpAffine(image, matrix, (112, 112)).astype(int)
    ours = warp(image, matrix, 112).astype(int)
    assert np.abs(ours - theirs).mean() < 1.0, "OpenCV rounds positions to 1/32 pixel"
    assert np.abs(np.roll(ours, 1, axis=1) - theirs).mean() > 5.0, "one pixel of difference would be seen"


def test_antialias_averages_where_the_face_is_much_too_large() -> None:
    checks = np.indices((448, 448)).sum(0) % 2 * 255
    image = np.repeat(checks[:, :, None], 3, axis=2).astype(np.uint8)
    matrix = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
    assert np.ptp(warp(image, matrix, 112, antialias=True)[1:-1, 1:-1]) <= 1
    small = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert np.array_equal(warp(image, small, 112, antialias=True), warp(image, small, 112))
    bright = np.zeros((448, 448, 3), np.uint8)
    bright[200:208, 120:128] = 255                         # aligned with blocks of 4: the same place either way
    for antialias in (False, True):
        rows, columns = np.nonzero(warp(bright, matrix, 112, antialias)[:, :, 0] > 100)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (50, 51, 30, 31)


def test_landmarks_end_on_the_template() -> None:
    """A dot at every landmark of a rotated face lies on its place in the crop."""
    image = np.zeros((300, 300, 3), np.uint8)
    points = np.round((TEMPLATE - 56) @ rotation(0.5, 1.6).T + 150)
    for x, y in points.astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    crop = align_face(image, [Face(points)], FaceChoice(), 112)
    assert crop.pixels_u8.shape == (112, 112, 3) and crop.size == pytest.approx(112 * 1.6, rel=0.02)
    for x, y in np.round(TEMPLATE).astype(int):
        assert crop.pixels_u8[y, x, 0] > 200


def faces() -> list[Face]:
    small, large, tiny = (scale * (TEMPLATE - TEMPLATE.mean(0)) for scale in (0.5, 1.0, 0.1))
    return [Face(small + [100, 100]), Face(large + [30, 160]), Face(tiny + [99, 101])]


@pytest.mark.parametrize(("pick", "size"), [("largest", 112), ("central", 56)])
def test_one_of_several_faces_is_picked(pick: str, size: float) -> None:
    found = align_face(np.zeros((201, 201, 3), np.uint8), faces(), FaceChoice(pick=pick), 112)
    assert found.size == pytest.approx(size) and found.num_faces == 3


def test_faces_that_do_not_count() -> None:
    image = np.zeros((201, 201, 3), np.uint8)
    for found, reason in (([], "no_face"), ([Face(np.zeros((5, 2)))], "no_face"), (faces()[2:], "too_small")):
        with pytest.raises(NoFace) as error:
            align_face(image, found, FaceChoice(), 112)
        assert error.value.reason == reason
    assert align_face(image, faces()[2:], FaceChoice(min_size=0), 112).size == pytest.approx(11.2)


def test_points_that_no_similarity_brings_to_the_template_are_no_face() -> None:
    mixed_up = TEMPLATE.T.reshape(5, 2)  # x1 ... x5 y1 ... y5 taken for x1 y1 ... x5 y5
    assert 0.2 < explained_share(mixed_up) < MIN_EXPLAINED and explained_share(3 * TEMPLATE - 7) == pytest.approx(1)
    assert explained_share(np.full((2, 5, 2), 3.0)).tolist() == [0, 0]
    with pytest.raises(NoFace, match="do not form a face"):
        align_face(np.zeros((120, 120, 3), np.uint8), [Face(mixed_up)], FaceChoice(min_size=0), 112)


def only_upright(upright: float, other: float, calls: list[int] | None = None):
    """Return a detector that finds one face in photos of 120 x 150; the first row is red where they stand."""

    def find(pixels_u8: np.ndarray):
        if calls is not None:
            calls.append(1)
        is_upright = pixels_u8.shape[0] == 150 and pixels_u8[0, 0, 0] == 255
        score = upright if is_upright else other
        return [(TEMPLATE + [2.0, 9.0], score)] if score else []

    return find


@pytest.mark.parametrize("lies", [1, 2, 3])
@pytest.mark.parametrize("other", [0.0, 0.88])
def test_a_photo_that_lies_is_turned(lies: int, other: float) -> None:
    photo = np.random.RandomState(0).randint(0, 200, (150, 120, 3)).astype(np.uint8)
    photo[0, :, 0] = 255
    lying = np.ascontiguousarray(np.rot90(photo, lies))
    aligner = FaceAligner(only_upright(0.92, other), FaceChoice(), 112)
    found = aligner.align(lying)
    assert np.array_equal(found.pixels_u8, photo[9:121, 2:114])
    assert (found.quarter_turns, aligner.num_turned) == ((4 - lies) % 4, 1)
    # the landmarks are those of the photo as it lies: given again, they cut out the same face
    again = align_face(lying, [found.face], FaceChoice(), 112)
    assert np.array_equal(again.pixels_u8, found.pixels_u8)


@pytest.mark.parametrize(("upright", "other", "looks"), [(0.95, 0.0, 1), (0.7, 0.6, 4), (0.7, 0.71, 4), (0.0, 0.0, 4)])
def test_a_photo_that_stands_is_left_as_it_is(upright: float, other: float, looks: int) -> None:
    photo, calls = np.full((150, 120, 3), 255, np.uint8), []
    aligner = FaceAligner(only_upright(upright, other, calls), FaceChoice(), 112)
    if upright:
        assert aligner.align(photo).quarter_turns == 0
    else:
        with pytest.raises(NoFace):
            aligner.align(photo)
    assert len(calls) == looks and aligner.num_turned == 0


def test_aligner_hands_on_what_the_detector_finds() -> None:
    aligner = FaceAligner(lambda image: [(TEMPLATE + 5.0, 0.8)], FaceChoice(), 112)
    image = np.random.RandomState(0).randint(0, 256, (130, 130, 3)).astype(np.uint8)
    assert np.array_equal(aligner(image), image[5:117, 5:117])
    assert aligner.align(image).face.score == 0.8
