"""Augmentation `photometric`: variants of every image with other brightness, contrast and saturation.

The changes are those of the transform of the same name (AdaFace, arXiv:2204.00964), drawn from
(seed, identity, sample, copy) and stored as lossless files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.augmentations.addition import Addition, Augmentation, next_number
from facesyn_cli.config.fields import affects_result, growable
from facesyn_cli.data.pixels import UnreadableImage, decode_image, encode_png
from facesyn_cli.data.transforms import Photometric, PhotometricConfig
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class PhotometricVariantsConfig(PluginConfig):
    """Settings of `photometric`; factors are uniform in 1 - value .. 1 + value."""

    copies: int = growable(1, "variants of every image", ge=1)
    fill_to: int | None = affects_result(
        None, "images that each identity has afterwards, instead of `copies`; identities with more get none", ge=1
    )
    brightness: float = Field(0.5, ge=0, le=1, description="brightness is multiplied by 1 - value to 1 + value")
    contrast: float = Field(0.5, ge=0, le=1, description="contrast is multiplied by 1 - value to 1 + value")
    saturation: float = Field(0.5, ge=0, le=1, description="saturation is multiplied by 1 - value to 1 + value")

    @model_validator(mode="after")
    def _has_one_number(self) -> PhotometricVariantsConfig:
        if self.fill_to is not None and self.copies != 1:
            raise ValueError("fill_to takes the place of copies; give one of them")
        return self


@register(
    "augmentation", "photometric",
    Card("Adds every image again with other brightness, contrast and saturation; copies: per image.",
         "Kim et al. 2022, AdaFace, arXiv:2204.00964"),
)
def build_photometric_variants(cfg: PhotometricVariantsConfig) -> Augmentation:
    """Build the augmentation."""
    return PhotometricVariants(cfg)


class PhotometricVariants:
    """Render variants of the samples; first one of each, then the second of each, and so on."""

    needs_faces = allow_real = False

    def __init__(self, cfg: PhotometricVariantsConfig) -> None:
        self.cfg = cfg
        strengths = {"brightness": cfg.brightness, "contrast": cfg.contrast, "saturation": cfg.saturation}
        self._change = Photometric(PhotometricConfig(name="photometric", p=1.0, **strengths))

    def additions(
        self,
        identity: str,
        samples: Sequence[ImageEntry],
        read: Callable[[ImageEntry], bytes],
        face: Path | None,
        seed: int,
    ) -> Iterator[Addition]:
        """Yield the variants of one identity's images."""
        first = next_number(samples)
        for place in range(self.num_additions(len(samples))):
            copy, row = divmod(place, len(samples))
            yield Addition(str(first + place), ".png", render=partial(self.render, samples[row], copy, read, seed))

    def render(self, entry: ImageEntry, copy: int, read: Callable[[ImageEntry], bytes], seed: int) -> bytes:
        """Return variant `copy` of one image as PNG.

        Raises:
            UserError: The image is unreadable.
        """
        try:
            pixels_u8 = decode_image(read(entry))
        except UnreadableImage as error:
            raise UserError(f"cannot read the image {entry.key}: {error}") from error
        return encode_png(self._change(pixels_u8, variant_generator(seed, entry.key, copy)))

    def num_additions(self, num_samples: int) -> int:
        """Return the number of variants."""
        if self.cfg.fill_to is None:
            return self.cfg.copies * num_samples
        return max(0, self.cfg.fill_to - num_samples) if num_samples else 0


def variant_generator(seed: int, key: str, copy: int) -> np.random.Generator:
    """Return the random generator of one variant of one image."""
    digest = hashlib.sha256(f"{seed}\n{copy}\n{key}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))
