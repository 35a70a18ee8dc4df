"""Poses read off the landmarks of a head turned by known angles."""

from __future__ import annotations

import numpy as np
import pytest
from turned_head import head

from facesyn_cli.data.pose import NOSE_DEPTH, pose_of, yaw_degrees


def test_a_turned_head():
    assert pose_of(head()) == pytest.approx((0, 0.5))
    # the nose stands out 0.4 and the eyes come together: 0.4 sin(a) / cos(a)
    for degrees in (-40, -15, 20, 35):
        assert pose_of(head(yaw=degrees))[0] == pytest.approx(0.4 * np.tan(np.deg2rad(degrees)))
    down = (0.55 * np.cos(0.3) + 0.4 * np.sin(0.3)) / (1.1 * np.cos(0.3) + 0.05 * np.sin(0.3))
    assert pose_of(head(pitch=np.rad2deg(0.3)))[1] == pytest.approx(down)
    assert pose_of(head(pitch=-20))[1] < 0.5 < pose_of(head(pitch=20))[1]


def test_size_place_and_roll_do_not_matter():
    expected = pose_of(head(yaw=20, pitch=10))
    for points in (head(20, 10, roll=35), head(20, 10, size=7), head(20, 10) + [30, -12]):
        assert pose_of(points) == pytest.approx(expected)
    mirrored = head(20, 10) * [-1, 1]
    assert pose_of(mirrored[[1, 0, 2, 4, 3]]) == pytest.approx((-expected[0], expected[1]))


def test_coinciding_landmarks_have_no_pose():
    assert np.isnan(pose_of(np.ones((5, 2)))).all()


@pytest.mark.parametrize("degrees", [-70, -30, 0, 15, 45])
def test_degrees_are_those_of_a_head_whose_nose_stands_out_as_assumed(degrees: float) -> None:
    points = head(yaw=degrees)
    assert yaw_degrees(points) == pytest.approx(np.degrees(np.arctan(0.4 / NOSE_DEPTH * np.tan(np.radians(degrees)))))
    assert yaw_degrees((points * [-1, 1])[[1, 0, 2, 4, 3]]) == pytest.approx(-yaw_degrees(points))
    assert np.isnan(yaw_degrees(np.ones((5, 2))))
