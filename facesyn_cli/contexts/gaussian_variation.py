"""The variation `gaussian`: noise on the context of each image, as in Vec2Face (arXiv:2409.02979).

    v' = (v + sigma n / sqrt(E)) / |...|,   n ~ N(0, I_E)

with sigma drawn per image: 0.3, 0.5, 0.7 for 40, 40, 20 % of the images. The mean cosine to the identity is
close to 1 / sqrt(1 + sigma^2): 0.96, 0.89, 0.82.

# Differs from Vec2Face: it adds N(0, sigma^2) to embeddings that are not normalized, whose lengths are not known
# here. Contexts have length 1, so sigma is relative to the root mean square 1 / sqrt(E) of their components.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import model_validator

from facesyn_cli.config.fields import affects_result
from facesyn_cli.contexts.variation import ContextVariation
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class GaussianConfig(PluginConfig):
    """Settings of `gaussian`."""

    sigmas: tuple[float, ...] = affects_result((0.3, 0.5, 0.7), "strengths, relative to the RMS of a component")
    shares: tuple[float, ...] = affects_result((0.4, 0.4, 0.2), "share of the images for each strength; they sum to 1")

    @model_validator(mode="after")
    def _agree(self) -> GaussianConfig:
        if not self.sigmas or len(self.sigmas) != len(self.shares):
            raise ValueError(f"sigmas ({len(self.sigmas)}) and shares ({len(self.shares)}) must have as many entries")
        if min(self.sigmas) < 0 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("sigmas must be 0 or more, and shares 0 or more with a sum of 1")
        return self


@register(
    "context_variation",
    "gaussian",
    Card(
        about="Add Gaussian noise to the context of each image and normalize it again.",
        paper="Vec2Face, Wu et al. 2025, arXiv:2409.02979",
    ),
)
class GaussianVariation(ContextVariation):
    """Contexts scattered around the identity's."""

    def __init__(self, cfg: GaussianConfig) -> None:
        self._cfg = cfg

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return a context near that of identity `row`; see `ContextVariation.context`."""
        random = keyed_random("gaussian", self.seed, self.identities[row], sample)
        place = np.searchsorted(np.cumsum(self._cfg.shares), random.random_sample(), side="right")
        sigma = self._cfg.sigmas[min(int(place), len(self._cfg.sigmas) - 1)]
        v = self.vectors[row].astype(np.float64)
        varied = v / np.linalg.norm(v) + sigma / math.sqrt(len(v)) * random.standard_normal(len(v))
        return (varied / np.linalg.norm(varied)).astype(np.float32)
