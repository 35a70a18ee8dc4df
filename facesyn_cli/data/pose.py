"""The pose of a face, from its five landmarks, without a network for angles.

With the eyes' middle m, their unit direction u (left to right in the image), its perpendicular v (downwards), the
distance w of the eyes, the nose n and the mouth's middle k:

    yaw   = (n - m) . u / w                    0 for a frontal face; the nose moves towards where the face looks
    pitch = (n - m) . v / ((k - m) . v)        about one half for a level face; less when it looks up

They do not change with the size, place or roll of the face. In an orthographic projection of a head that is turned by
an angle a, the eyes' distance shrinks to w cos(a) and the nose, which lies d in front of them, moves by d sin(a), so

    yaw = (d / w) tan(a).

For an adult d is about 3 cm and w 6.3 cm. Angles are approximate: noses differ, and detectors miss profiles.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NOSE_DEPTH = 3.0 / 6.3  # d / w


def pose_of(points: NDArray[np.float64]) -> tuple[float, float]:
    """Return (yaw, pitch) of one face, as ratios.

    Args:
        points: (5, 2) landmarks x, y: left eye as seen in the image, right eye, nose, corners of the mouth.

    Returns:
        NaN where eyes or mouth coincide.
    """
    middle, mouth = points[:2].mean(0), points[3:].mean(0)
    across = points[1] - points[0]
    width = float(np.linalg.norm(across))
    if width == 0:
        return float("nan"), float("nan")
    u = across / width
    v = np.array([-u[1], u[0]])
    nose, height = points[2] - middle, float((mouth - middle) @ v)
    return float(nose @ u) / width, float(nose @ v) / height if height else float("nan")


def yaw_degrees(points: NDArray[np.float64]) -> float:
    """Return about how far a face is turned, in degrees; positive when it looks to the right of the image.

    Args:
        points: As of `pose_of`.
    """
    return math.degrees(math.atan(pose_of(points)[0] / NOSE_DEPTH))
