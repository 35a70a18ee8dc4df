"""Drawn faces: simple pictures with identity, pose, light and expression, for the demo and for tests.

A stand-in for photographs where there are none: every identity has its own skin, hair, proportions and
features; every sample of it its own pose, light, expression and background. Nothing is learned from real
people. Identity and sample are drawn from (seed, identity) and (seed, identity, sample), so any picture
can be drawn alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SUPERSAMPLE = 2


@dataclass(frozen=True)
class Face:
    """What stays the same in all pictures of one identity. Lengths are shares of the image side."""

    skin: tuple[float, float, float]      # RGB 0..255
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    width: float                          # half width of the head
    height: float                         # half height of the head
    jaw: float                            # 0 round .. 1 pointed
    hair_top: float                       # how far the hair comes down the forehead
    hair_side: float                      # how far it falls beside the face, 0 short .. 1 long
    eye_gap: float                        # half distance of the eyes
    eye_size: float
    eye_slant: float                      # radians
    brow_gap: float
    brow_weight: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_weight: float
    beard: float                          # darkness of the beard, 0 for most
    mole: tuple[float, float]             # position on the face


def face_of(seed: int, identity: str) -> Face:
    """Return the face of one identity."""
    r = _generator(seed, identity, "face")
    tone = r.uniform(0, 1)
    skin = np.array([245, 205, 180]) * (1 - tone) + np.array([95, 60, 42]) * tone + r.normal(0, 8, 3)
    hairs = np.array([[28, 22, 20], [70, 45, 28], [120, 80, 45], [190, 155, 95], [150, 60, 30], [150, 150, 150]])
    irises = np.array([[60, 40, 25], [95, 70, 40], [70, 110, 80], [80, 120, 170], [110, 120, 125]])
    return Face(
        skin=_rgb(skin),
        hair=_rgb(hairs[r.integers(len(hairs))] + r.normal(0, 10, 3)),
        iris=_rgb(irises[r.integers(len(irises))] + r.normal(0, 6, 3)),
        lips=_rgb(skin * 0.75 + np.array([45, 0, 8]) + r.normal(0, 8, 3)),
        width=r.uniform(0.29, 0.39),
        height=r.uniform(0.41, 0.49),
        jaw=r.uniform(0, 1),
        hair_top=r.uniform(0.06, 0.24),
        hair_side=r.choice([0.0, r.uniform(0.3, 1.0)]),
        eye_gap=r.uniform(0.135, 0.185),
        eye_size=r.uniform(0.034, 0.052),
        eye_slant=r.normal(0, 0.10),
        brow_gap=r.uniform(0.055, 0.095),
        brow_weight=r.uniform(0.008, 0.026),
        nose_length=r.uniform(0.14, 0.22),
        nose_width=r.uniform(0.035, 0.065),
        mouth_width=r.uniform(0.08, 0.14),
        lip_weight=r.uniform(0.012, 0.032),
        beard=float(r.choice([0, 0, 0, r.uniform(0.25, 0.6)])),
        mole=(r.uniform(-0.7, 0.7), r.uniform(0.0, 0.7)),
    )


def draw_face(seed: int, identity: str, sample: str, size: int = 112) -> np.ndarray:
    """Draw one picture of one identity.

    Args:
        seed: Seed of the whole set.
        identity: Name of the identity.
        sample: Name of the sample; decides pose, light, expression and background.
        size: Side in pixels.

    Returns:
        (size, size, 3) uint8, RGB.
    """
    face = face_of(seed, identity)
    r = _generator(seed, identity, f"sample {sample}")
    side = size * _SUPERSAMPLE
    gray = r.uniform(30, 220)
    canvas = Image.new("RGB", (side, side), _rgb(0.65 * gray + 0.35 * r.uniform(0, 255, 3)))
    _draw(ImageDraw.Draw(canvas), face, side, yaw=r.normal(0, 0.35), pitch=r.normal(0, 0.25), smile=r.normal(0.2, 0.5),
          mouth_open=max(0.0, r.normal(0, 0.5)), lids=r.uniform(0.6, 1.1))
    tilt = float(np.clip(r.normal(0, 5), -12, 12))
    canvas = canvas.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=canvas.getpixel((1, 1)))
    canvas = canvas.filter(ImageFilter.GaussianBlur(r.uniform(0.6, 1.6)))
    canvas = canvas.resize((size, size), Image.Resampling.BOX)
    return _light(np.asarray(canvas, dtype=np.float32), r)


def _draw(pen: ImageDraw.ImageDraw, face: Face, side: int, yaw: float, pitch: float, smile: float, mouth_open: float,
          lids: float) -> None:
    """Draw hair, head and features; yaw and pitch move the features over the head."""
    yaw, pitch = float(np.clip(yaw, -0.9, 0.9)), float(np.clip(pitch, -0.7, 0.7))
    dark = _rgb(np.array(face.skin) * 0.72)
    squeeze = 1 - 0.25 * abs(yaw)

    def box(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return ((0.5 + x - w) * side, (0.5 + y - h) * side, (0.5 + x + w) * side, (0.5 + y + h) * side)

    def on_face(x: float, y: float) -> tuple[float, float]:
        return x * squeeze + 0.11 * yaw, y + 0.07 * pitch

    hair_h = face.height * (1.02 + 0.35 * face.hair_side)
    pen.ellipse(box(0.02 * yaw, -0.03 + 0.2 * face.hair_side, face.width * 1.16, hair_h * 1.04), fill=face.hair)
    for side_sign in (-1, 1):
        pen.ellipse(box(side_sign * face.width * 0.98 - 0.04 * yaw, 0.02 + 0.03 * pitch, 0.035, 0.075), fill=dark)
    pen.rectangle(box(0, 0.45, face.width * 0.55, 0.12), fill=dark)
    angle = np.linspace(0, 2 * np.pi, 48)
    pointed = 1 - 0.28 * face.jaw * np.clip(np.sin(angle), 0, 1) ** 2
    outline = [((0.5 + face.width * np.cos(a) * p) * side, (0.5 + face.height * np.sin(a)) * side)
               for a, p in zip(angle, pointed, strict=True)]
    pen.polygon(outline, fill=face.skin)
    if face.beard:
        tint = _rgb(np.array(face.skin) * (1 - face.beard) + np.array(face.hair) * face.beard)
        chin = np.linspace(0.08 * np.pi, 0.92 * np.pi, 24)
        pen.polygon([((0.5 + 0.04 * yaw + face.width * 0.86 * np.cos(a)) * side,
                      (0.66 + face.height * 0.62 * np.sin(a)) * side) for a in chin], fill=tint)
    top = -face.height + face.hair_top
    rise = np.arcsin(-top / face.height)  # the fringe is cut straight across at the hair line
    fringe = np.linspace(np.pi + rise, 2 * np.pi - rise, 24)
    pen.polygon([((0.5 + 0.05 * yaw + face.width * 1.03 * np.cos(a)) * side,
                  (0.5 + face.height * 1.03 * np.sin(a)) * side) for a in fringe], fill=face.hair)
    eye_y = max(-0.08, top + 0.10)
    for side_sign in (-1, 1):
        x, y = on_face(side_sign * face.eye_gap, eye_y)
        slant = side_sign * face.eye_slant
        pen.ellipse(box(x, y, face.eye_size * 1.15 * squeeze, face.eye_size * 0.62 * lids), fill=(240, 238, 235))
        pen.ellipse(box(x + 0.012 * yaw, y, face.eye_size * 0.55, face.eye_size * 0.55 * lids), fill=face.iris)
        pen.ellipse(box(x + 0.012 * yaw, y, face.eye_size * 0.24, face.eye_size * 0.24), fill=(12, 10, 10))
        brow_y = y - face.brow_gap - 0.01 * smile
        half = face.eye_size * 1.5 * squeeze
        pen.line(((0.5 + x - half) * side, (0.5 + brow_y - slant * half) * side,
                  (0.5 + x + half) * side, (0.5 + brow_y + slant * half) * side),
                 fill=_rgb(np.array(face.hair) * 0.8), width=max(1, int(face.brow_weight * side)))
    x, y = on_face(0.03 * yaw, eye_y + face.nose_length)
    pen.polygon([((0.5 + x) * side, (0.5 + eye_y + 0.02) * side),
                 ((0.5 + x - face.nose_width) * side, (0.5 + y) * side),
                 ((0.5 + x + face.nose_width) * side, (0.5 + y) * side)], fill=_rgb(np.array(face.skin) * 0.9))
    pen.ellipse(box(x, y, face.nose_width, face.nose_width * 0.5), fill=dark)
    x, y = on_face(0, eye_y + face.nose_length + 0.115)
    width, open_h = face.mouth_width * squeeze * (1 + 0.15 * smile), face.lip_weight * (1 + mouth_open)
    bend = 0.03 * smile
    upper = [(-1, -bend), (-0.4, -open_h), (0, -open_h * 0.8), (0.4, -open_h), (1, -bend)]
    mouth = [*upper, (0.5, open_h), (-0.5, open_h)]
    pen.polygon([((0.5 + x + u * width) * side, (0.5 + y + v) * side) for u, v in mouth], fill=face.lips)
    if mouth_open > 0.3:
        pen.ellipse(box(x, y, width * 0.55, open_h * 0.45), fill=(60, 18, 18))
    x, y = on_face(face.mole[0] * face.width * 0.8, face.mole[1] * face.height * 0.5)
    pen.ellipse(box(x, y, 0.009, 0.009), fill=_rgb(np.array(face.skin) * 0.45))


def _light(pixels: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Shade along a random direction, change brightness, contrast and the light's color, add sensor noise."""
    size = len(pixels)
    direction = r.uniform(0, 2 * np.pi)
    at = np.linspace(-1, 1, size)
    slope = np.cos(direction) * at[None, :] + np.sin(direction) * at[:, None]
    shade = 1 + r.uniform(0, 0.35) * slope
    lit = (pixels - 128) * r.uniform(0.8, 1.15) + 128
    tint = r.uniform(0.6, 1.25) * np.exp(r.normal(0, 0.18, 3))  # so that mean colors do not tell who it is
    lit = lit * shade[:, :, None] * tint + r.normal(0, r.uniform(1, 4), pixels.shape)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


def _generator(seed: int, identity: str, purpose: str) -> np.random.Generator:
    text = f"{seed}\x00{identity}\x00{purpose}".encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text).digest()[:16], "little")))


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.asarray(values), 0, 255).astype(int)
    return int(red), int(green), int(blue)
