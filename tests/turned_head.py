"""Landmarks of a head that is turned by known angles."""

from __future__ import annotations

import numpy as np

# eyes, nose, mouth of a head in units of the distance of its eyes; z points to the viewer, y downwards
HEAD = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.55, 0.4], [-0.35, 1.1, 0.05], [0.35, 1.1, 0.05]])


def head(yaw: float = 0, pitch: float = 0, roll: float = 0, size: float = 40) -> np.ndarray:
    """Landmarks of a head turned by angles in degrees, seen from far away."""
    a, b, c = np.deg2rad([yaw, pitch, roll])
    turn_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    points = (HEAD @ turn_y.T @ turn_x.T)[:, :2]
    turn_z = np.array([[np.cos(c), -np.sin(c)], [np.sin(c), np.cos(c)]])
    return size * points @ turn_z.T + 56
