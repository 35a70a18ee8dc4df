"""How far the heads of a sampled set are turned."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.plugins.settings import Settings


class PoseSettings(Settings):
    """The yaw of a share of the images, uniform between two angles; below 0 faces look to the left of the image."""

    lowest: float = Field(-45.0, ge=-90, le=90, description="yaw in degrees")
    highest: float = Field(45.0, ge=-90, le=90, description="yaw in degrees")
    share: float = Field(1.0, gt=0, le=1, description="share of the images; the yaw of others is left to the LDM")

    @model_validator(mode="after")
    def _is_a_range(self) -> PoseSettings:
        if self.lowest > self.highest:
            raise ValueError(f"lowest ({self.lowest}) must not be above highest ({self.highest})")
        return self

    def yaw(self, seed: int, identity: str, sample: int) -> float:
        """Return the yaw of an image in degrees; NaN where it is left to the LDM."""
        place, angle = keyed_random("pose", seed, identity, sample).random_sample(2)
        return self.lowest + angle * (self.highest - self.lowest) if place < self.share else math.nan
