"""Random changes of an image during training: `transform` plugins.

A transform is a callable (pixels_u8 (H, W, 3) RGB, generator) -> pixels_u8 (H, W, 3). All randomness comes from the
generator that is passed in, so the result does not depend on worker processes. Images are computed by torchvision on
PIL images, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field
from torchvision.transforms import functional as F

from facesyn_cli.plugins.registry import Card, build, register
from facesyn_cli.plugins.settings import PluginConfig

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _require_range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("two numbers 0 < smallest <= largest are expected")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_require_range)]  # smallest and largest


def compose(configs: Sequence[PluginConfig]) -> Transform:
    """Return one transform that applies the plugins of `configs` in their order."""
    return Composed([build("transform", cfg) for cfg in configs])


@dataclass(frozen=True)
class Composed:
    """Several transforms in sequence, with one generator."""

    transforms: Sequence[Transform]

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            pixels_u8 = transform(pixels_u8, generator)
        return pixels_u8


class FlipConfig(PluginConfig):
    """Settings of `flip`."""

    p: float = Field(0.5, ge=0, le=1)  # probability


@register("transform", "flip", Card("Mirrors the face left to right.", "Tencent TFace"))
@dataclass(frozen=True)
class Flip:
    """Mirror left to right with probability p."""

    cfg: FlipConfig

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if generator.random() < self.cfg.p:
            return np.ascontiguousarray(pixels_u8[:, ::-1])
        return pixels_u8


class RandomResizedCropConfig(PluginConfig):
    """Settings of `random-resized-crop`."""

    p: float = Field(0.2, ge=0, le=1)                # probability
    scale: Range = (0.2, 1.0)                        # area of the crop over area of the image
    ratio: Range = (0.75, 1.3333)                    # width over height of the crop
    size: int = Field(112, gt=0)                     # side of the result


@register(
    "transform", "random-resized-crop",
    Card("Cuts out a random part and enlarges it to the full size.",
         "Kim et al. 2022, AdaFace, arXiv:2204.00964, as changed by the ADMIS team of FRCSyn 2024"),
)
@dataclass(frozen=True)
class RandomResizedCrop:
    """With probability p, crop a random rectangle and resize it bilinearly (PIL) to size x size.

    The rectangle's area is uniform in `scale` and its aspect ratio log-uniform in `ratio`; after ten
    rectangles that do not fit, the largest central one with an allowed ratio is taken.
    """

    cfg: RandomResizedCropConfig

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if generator.random() >= self.cfg.p:
            return pixels_u8
        top, left, height, width = self.rectangle(pixels_u8.shape[0], pixels_u8.shape[1], generator)
        image = Image.fromarray(pixels_u8)
        size = [self.cfg.size, self.cfg.size]
        return np.asarray(F.resized_crop(image, top, left, height, width, size, F.InterpolationMode.BILINEAR))

    def rectangle(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop of an image of the given size, in pixels."""
        for _ in range(10):
            h, w = _random_sides(height * width, self.cfg.scale, self.cfg.ratio, generator)
            if 0 < w <= width and 0 < h <= height:
                top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
                return int(top), int(left), h, w
        w = min(width, round(height * self.cfg.ratio[1]))
        h = min(height, round(width / self.cfg.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


class RandomErasingConfig(PluginConfig):
    """Settings of `random-erasing`."""

    p: float = Field(0.5, ge=0, le=1)                # probability
    scale: Range = (0.02, 0.33)                      # area of the rectangle over area of the image
    ratio: Range = (0.3, 3.3)                        # height over width of the rectangle
    fill: int = Field(128, ge=0, le=255)             # gray level of the rectangle


@register(
    "transform", "random-erasing",
    Card("Fills a random rectangle with gray.", "Zhong et al. 2017, Random Erasing, arXiv:1708.04896"),
)
@dataclass(frozen=True)
class RandomErasing:
    """With probability p, fill a random rectangle; after ten that do not fit, leave the image alone."""

    cfg: RandomErasingConfig

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if generator.random() >= self.cfg.p:
            return pixels_u8
        height, width = pixels_u8.shape[:2]
        for _ in range(10):
            w, h = _random_sides(height * width, self.cfg.scale, self.cfg.ratio, generator)
            if 0 < w < width and 0 < h < height:
                top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
                pixels_u8 = pixels_u8.copy()
                pixels_u8[top : top + h, left : left + w] = self.cfg.fill
                break
        return pixels_u8


class PhotometricConfig(PluginConfig):
    """Settings of `photometric`; factors are uniform in 1 - value .. 1 + value."""

    p: float = Field(0.2, ge=0, le=1)                # probability
    brightness: float = Field(0.5, ge=0, le=1)
    contrast: float = Field(0.5, ge=0, le=1)
    saturation: float = Field(0.5, ge=0, le=1)


@register(
    "transform", "photometric",
    Card("Changes brightness, contrast and saturation, in random order.",
         "Kim et al. 2022, AdaFace, arXiv:2204.00964"),
)
@dataclass(frozen=True)
class Photometric:
    """With probability p, scale brightness, contrast and saturation by random factors in random order."""

    cfg: PhotometricConfig

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if generator.random() >= self.cfg.p:
            return pixels_u8
        image = Image.fromarray(pixels_u8)
        steps = (
            (F.adjust_brightness, self.cfg.brightness),
            (F.adjust_contrast, self.cfg.contrast),
            (F.adjust_saturation, self.cfg.saturation),
        )
        factors = generator.uniform(-1, 1, size=len(steps))
        for i in generator.permutation(len(steps)):
            adjust, strength = steps[i]
            if strength:
                image = adjust(image, 1 + strength * factors[i])
        return np.asarray(image)


def _random_sides(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int]:
    """Draw two sides (first, second): area uniform in `scale`, second over first log-uniform in `ratio`."""
    target = area * generator.uniform(*scale)
    aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
