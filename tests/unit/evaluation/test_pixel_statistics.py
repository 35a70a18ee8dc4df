"""Sharpness of known pictures; poses of sets of a known spread."""

from __future__ import annotations

import numpy as np
import pytest
from turned_head import head

from facesyn_cli.distributed import processes
from facesyn_cli.evaluation import pixel_statistics
from facesyn_cli.evaluation.all_metrics import define
from facesyn_cli.evaluation.pixel_statistics import (
    measure_sample,
    pose_section,
    sharpness_of,
    sharpness_section,
)


def section_of(yaws, owner):
    faces = {str(k): yaw for k, yaw in enumerate(yaws)}

    def find(pixels_u8):
        yaw = faces[str(int(pixels_u8[0, 0, 0]))]
        return [] if yaw is None else [(head(yaw=yaw), 0.9), (head(yaw=80), 0.7)]

    def read(key):
        return None if key == "2" and yaws[2] == "unreadable" else np.full((2, 2, 3), int(key), np.uint8)

    measured = measure_sample(list(faces), np.array(owner), read, find, 0, processes("cpu"))
    return pose_section(measured, np.array(owner), 0)


def test_spread_over_images_and_within_people():
    section = section_of([-20, 20, -20, 20], [0, 0, 1, 1])
    found = {f.id: f.value for f in section.figures}
    at = 0.4 * np.tan(np.deg2rad(20))
    assert found["pixels.faces_found"] == 1 and found["pixels.yaw_spread"] == pytest.approx(at)
    assert found["pixels.yaw_within"] == pytest.approx(at * np.sqrt(2)) and found["pixels.pitch_within"] == 0
    by_person = section_of([-20, -20, 20, 20], [0, 0, 1, 1])
    assert {f.id: f.value for f in by_person.figures}["pixels.yaw_within"] == 0
    assert sum(section.histograms[0].series["images"]) == 4
    names = [f.id for f in section.figures] + [h.id for h in section.histograms]
    assert len(define(names)) == len(names)


def test_images_without_a_face_are_counted():
    found = {f.id: f for f in section_of([0, None, "unreadable", 10], [0, 0, 1, 1]).figures}
    assert found["pixels.faces_found"].value == 0.5 and found["pixels.yaw_spread"].n == 2
    assert found["pixels.face_score"].value == pytest.approx(0.9) and found["pixels.face_score"].n == 2
    assert found["pixels.yaw_within"].value is None


def test_a_sample_takes_whole_people(monkeypatch):
    monkeypatch.setattr(pixel_statistics, "MAX_IMAGES", 5)
    found = {f.id: f for f in section_of([0, 10] * 6, np.repeat(np.arange(6), 2)).figures}
    assert found["pixels.faces_found"].n == 4 and not found["pixels.yaw_spread"].exact
    assert found["pixels.yaw_within"].n == 2


def gray(levels) -> np.ndarray:
    return np.repeat(np.asarray(levels, np.uint8)[:, :, None], 3, axis=2)


def test_sharpness_is_the_variance_of_the_laplacian():
    # on a checkerboard of 0 and 10 every Laplacian is 40 or -40; on a ramp, and on a flat picture, it is 0
    rows, columns = np.indices((9, 9))
    assert sharpness_of(gray((rows + columns) % 2 * 10)) == pytest.approx(40**2, rel=0.01)
    assert sharpness_of(gray(3 * rows + 2 * columns)) == pytest.approx(0) == sharpness_of(gray(np.full((9, 9), 77)))
    red = np.zeros((9, 9, 3), np.uint8)
    red[..., 0] = (rows + columns) % 2 * 10
    assert sharpness_of(red) == pytest.approx((0.299 * 40) ** 2, rel=0.01)
    assert np.isnan(sharpness_of(gray(np.zeros((2, 9)))))


def test_the_sharpness_of_a_set_is_a_median_and_needs_no_detector():
    pictures = {"a/0": 1, "a/1": 10, "b/0": 3, "b/1": None}  # contrast of a checkerboard; None: unreadable
    rows, columns = np.indices((20, 20))

    def read(key):
        return None if pictures[key] is None else gray((rows + columns) % 2 * pictures[key])

    measured = measure_sample(list(pictures), np.array([0, 0, 1, 1]), read, None, 0, processes("cpu"))
    assert np.isnan(measured[:, 1:]).all()
    figure, = sharpness_section(measured, np.array([0, 0, 1, 1])).figures
    assert figure.n == 3 and figure.exact and figure.value == pytest.approx(12**2)
    assert len(define([figure.id])) == 1
