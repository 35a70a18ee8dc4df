"""Random changes of an image during training: `transform` plugins.

A transform is a callable (pixels_u8 (H, W, 3) RGB, generator) -> pixels_u8 (H, W, 3). All randomness comes from the
generator that is passed in, so the result does not depend on worker processes. Images are computed by torchvision on
PIL images, as published.

The built-in ones are `DrawnTransform`s, which also change a whole batch on a GPU, with the same random parameters. A
plugin may be one; a list of transforms with one that is not runs image by image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision.transforms import functional as F

from facesyn_cli.data.batch_transforms import crop_and_resize, enhance, erase, on_device
from facesyn_cli.plugins.registry import Card, build, register
from facesyn_cli.plugins.settings import PluginConfig

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _require_range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("two numbers 0 < smallest <= largest are expected")
    return value


def _require_shrinking(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("a scale of at most 1 is expected")
    return value


class DrawnTransform(ABC):
    """A transform whose random parameters are drawn apart from the pixels they change."""

    def __call__(self, pixels_u8: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw the parameters of one image and apply them."""
        drawn = self.draw(pixels_u8.shape[0], pixels_u8.shape[1], generator)
        return pixels_u8 if drawn is None else self.change(pixels_u8, drawn)

    @abstractmethod
    def draw(self, height: int, width: int, generator: np.random.Generator) -> Any:
        """Draw the parameters of one image of the given size; None: it stays as it is."""

    @abstractmethod
    def change(self, pixels_u8: np.ndarray, drawn: Any) -> np.ndarray:
        """Apply drawn parameters to one image, which is not written to."""

    @abstractmethod
    def change_batch(self, images: Tensor, drawn: Sequence[Any]) -> Tensor:
        """Apply drawn parameters to (B, H, W, 3) uint8 images on their device; equal to `change` within 2 gray levels.

        The size of the images stays; see `fits`.
        """

    def fits(self, side: int) -> bool:
        """True when `change_batch` can change images of this side."""
        return True


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

    def has_batch_form(self, side: int) -> bool:
        """True when `draw` and `change_batch` can stand for the call, for images of this side."""
        return all(isinstance(transform, DrawnTransform) and transform.fits(side) for transform in self.transforms)

    def draw(self, side: int, generator: np.random.Generator) -> list[Any]:
        """Draw the parameters of one image for every transform in turn."""
        return [transform.draw(side, side, generator) for transform in self.transforms]

    def change_batch(self, images: Tensor, drawn: Sequence[list[Any]]) -> Tensor:
        """Apply what `draw` returned for each image to (B, side, side, 3) uint8 images, in place."""
        for number, transform in enumerate(self.transforms):
            rows = [row for row, own in enumerate(drawn) if own[number] is not None]
            if rows:
                places = on_device(rows, torch.int64, images.device)
                images[places] = transform.change_batch(images[places], [drawn[row][number] for row in rows])
        return images


class FlipConfig(PluginConfig):
    """Settings of `flip`."""

    p: float = Field(0.5, ge=0, le=1, description="probability of changing an image")


@register("transform", "flip", Card("Mirrors the face left to right.", "Tencent TFace"))
@dataclass(frozen=True)
class Flip(DrawnTransform):
    """Mirror left to right with probability p."""

    cfg: FlipConfig

    def draw(self, height: int, width: int, generator: np.random.Generator) -> bool | None:
        """Return True for an image that is mirrored, else None."""
        return True if generator.random() < self.cfg.p else None

    def change(self, pixels_u8: np.ndarray, drawn: bool) -> np.ndarray:
        """Mirror one image."""
        mirrored = np.empty_like(pixels_u8)
        for channel in range(3):  # several times faster than a copy of pixels_u8[:, ::-1]
            mirrored[..., channel] = pixels_u8[:, ::-1, channel]
        return mirrored

    def change_batch(self, images: Tensor, drawn: Sequence[bool]) -> Tensor:
        """Mirror a batch."""
        return images.flip(2)


class RandomResizedCropConfig(PluginConfig):
    """Settings of `random-resized-crop`."""

    p: float = Field(0.2, ge=0, le=1, description="probability of changing an image")
    scale: Range = Field((0.2, 1.0), description="area of the crop over area of the image")
    ratio: Range = Field((0.75, 1.3333), description="width over height of the crop")
    size: int = Field(112, gt=0, description="side of the result")


@register(
    "transform", "random-resized-crop",
    Card("Cuts out a random part and enlarges it to the full size.",
         "Kim et al. 2022, AdaFace, arXiv:2204.00964, as changed by the ADMIS team of FRCSyn 2024"),
)
@dataclass(frozen=True)
class RandomResizedCrop(DrawnTransform):
    """With probability p, crop a random rectangle and resize it bilinearly (PIL) to size x size.

    The rectangle's area is uniform in `scale` and its aspect ratio log-uniform in `ratio`; after ten
    rectangles that do not fit, the largest central one with an allowed ratio is taken.
    """

    cfg: RandomResizedCropConfig

    def draw(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int] | None:
        """Return the rectangle of an image that is cropped, else None."""
        return None if generator.random() >= self.cfg.p else self.rectangle(height, width, generator)

    def fits(self, side: int) -> bool:
        """True when crops are enlarged to the size of the image."""
        return self.cfg.size == side

    def change_batch(self, images: Tensor, drawn: Sequence[tuple[int, int, int, int]]) -> Tensor:
        """Crop a batch."""
        return crop_and_resize(images, drawn, self.cfg.size)

    def change(self, pixels_u8: np.ndarray, drawn: tuple[int, int, int, int]) -> np.ndarray:
        """Crop one image."""
        top, left, height, width = drawn
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

    p: float = Field(0.5, ge=0, le=1, description="probability of changing an image")
    scale: Range = Field((0.02, 0.33), description="area of the rectangle over area of the image")
    ratio: Range = Field((0.3, 3.3), description="height over width of the rectangle")
    fill: int = Field(128, ge=0, le=255, description="gray level of the rectangle")


@register(
    "transform", "random-erasing",
    Card("Fills a random rectangle with gray.", "Zhong et al. 2017, Random Erasing, arXiv:1708.04896"),
)
@dataclass(frozen=True)
class RandomErasing(DrawnTransform):
    """With probability p, fill a random rectangle; after ten that do not fit, leave the image alone."""

    cfg: RandomErasingConfig

    def draw(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int] | None:
        """Return (top, left, height, width) in pixels of what is filled; None: nothing."""
        if generator.random() >= self.cfg.p:
            return None
        for _ in range(10):
            w, h = _random_sides(height * width, self.cfg.scale, self.cfg.ratio, generator)
            if 0 < w < width and 0 < h < height:
                top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
                return int(top), int(left), h, w
        return None

    def change(self, pixels_u8: np.ndarray, drawn: tuple[int, int, int, int]) -> np.ndarray:
        """Fill the rectangle of one image."""
        top, left, h, w = drawn
        pixels_u8 = pixels_u8.copy()
        pixels_u8[top : top + h, left : left + w] = self.cfg.fill
        return pixels_u8

    def change_batch(self, images: Tensor, drawn: Sequence[tuple[int, int, int, int]]) -> Tensor:
        """Fill the rectangles of a batch."""
        return erase(images, drawn, self.cfg.fill)


class LowResolutionConfig(PluginConfig):
    """Settings of `low-resolution`."""

    p: float = Field(0.2, ge=0, le=1, description="probability of changing an image")
    scale: Annotated[Range, AfterValidator(_require_shrinking)] = Field(
        (0.2, 1.0), description="side of the small image over side of the image, at most 1"
    )


@register(
    "transform", "low-resolution",
    Card("Shrinks the image to a random size and enlarges it again.", "Kim et al. 2022, AdaFace, arXiv:2204.00964"),
)
@dataclass(frozen=True)
class LowResolution(DrawnTransform):
    """With probability p, resize to a random side and back, bilinearly (PIL, whose filter widens for shrinking).

    # Differs from AdaFace: there each of the two has a random filter of OpenCV's nearest, linear, cubic, area and
    # Lanczos, most of which do not widen.
    """

    cfg: LowResolutionConfig

    def draw(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int] | None:
        """Return height and width of the small image in pixels; None: the image stays as it is."""
        if generator.random() >= self.cfg.p:
            return None
        scale = generator.uniform(*self.cfg.scale)
        return max(1, round(scale * height)), max(1, round(scale * width))

    def change(self, pixels_u8: np.ndarray, drawn: tuple[int, int]) -> np.ndarray:
        """Change the resolution of one image."""
        return np.asarray(_bilinear(_bilinear(Image.fromarray(pixels_u8), drawn), pixels_u8.shape[:2]))

    def change_batch(self, images: Tensor, drawn: Sequence[tuple[int, int]]) -> Tensor:
        """Change the resolution of a batch, image by image: they have different sizes in between."""
        pairs = zip(images.permute(0, 3, 1, 2), drawn, strict=True)
        changed = [_bilinear(_bilinear(pixels, size), pixels.shape[1:]) for pixels, size in pairs]
        return torch.stack(changed).permute(0, 2, 3, 1)


def _bilinear(image: Any, size: Sequence[int]) -> Any:
    """Resize a PIL image or a (3, H, W) tensor to (height, width)."""
    return F.resize(image, list(size), F.InterpolationMode.BILINEAR, antialias=True)


class PhotometricConfig(PluginConfig):
    """Settings of `photometric`; factors are uniform in 1 - value .. 1 + value."""

    p: float = Field(0.2, ge=0, le=1, description="probability of changing an image")
    brightness: float = Field(0.5, ge=0, le=1, description="brightness is multiplied by 1 - value to 1 + value")
    contrast: float = Field(0.5, ge=0, le=1, description="contrast is multiplied by 1 - value to 1 + value")
    saturation: float = Field(0.5, ge=0, le=1, description="saturation is multiplied by 1 - value to 1 + value")


@register(
    "transform", "photometric",
    Card("Changes brightness, contrast and saturation, in random order.",
         "Kim et al. 2022, AdaFace, arXiv:2204.00964"),
)
@dataclass(frozen=True)
class Photometric(DrawnTransform):
    """With probability p, scale brightness, contrast and saturation by random factors in random order."""

    cfg: PhotometricConfig

    def draw(self, height: int, width: int, generator: np.random.Generator) -> list[tuple[int, float]] | None:
        """Return (number in `_ADJUSTMENTS`, factor) in the order of their use; None: the image stays as it is."""
        if generator.random() >= self.cfg.p:
            return None
        strengths = (self.cfg.brightness, self.cfg.contrast, self.cfg.saturation)
        factors = generator.uniform(-1, 1, size=len(strengths))
        return [(int(i), 1 + strengths[i] * float(factors[i])) for i in generator.permutation(len(strengths))]

    def change(self, pixels_u8: np.ndarray, drawn: list[tuple[int, float]]) -> np.ndarray:
        """Change the colors of one image."""
        image = Image.fromarray(pixels_u8)
        for kind, factor in drawn:
            if factor != 1:
                image = _ADJUSTMENTS[kind](image, factor)
        return np.asarray(image)

    def change_batch(self, images: Tensor, drawn: Sequence[list[tuple[int, float]]]) -> Tensor:
        """Change the colors of a batch."""
        return enhance(images, drawn)


_ADJUSTMENTS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def _random_sides(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int]:
    """Draw two sides (first, second): area uniform in `scale`, second over first log-uniform in `ratio`."""
    target = area * generator.uniform(*scale)
    aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
