"""The variation `shared-noise`: image k of every identity shares its noise, and with it pose, light and background.

    x_T = sqrt(a) z_style + sqrt(1 - a) z_own

z_style belongs to style k mod `styles` and is the same for all identities, z_own to the image; both are N(0, I)
and independent, so x_T is as well, and a is the correlation of the noise of two identities in one style.
"""

from __future__ import annotations

import math

from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.contexts.variation import ContextVariation
from facesyn_cli.diffusion.noise import style_noise
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SharedNoiseConfig(PluginConfig):
    """Settings of `shared-noise`."""

    share: float = affects_result(1.0, "a: correlation of the noise of two identities in one style", gt=0, le=1)
    styles: int | None = affects_result(None, "number of styles; None: as many as an identity has images", ge=1)


@register(
    "context_variation",
    "shared-noise",
    Card(about="Style mixing: image k of every identity starts from the same noise, or from a share of it."),
)
class SharedNoise(ContextVariation):
    """Unchanged contexts, noise shared between identities."""

    varies_contexts = False

    def __init__(self, cfg: SharedNoiseConfig) -> None:
        self._cfg = cfg

    def noise(self, own: Tensor, row: int, sample: int) -> Tensor:
        """Return the mixture of the style's noise and the image's own; see `ContextVariation.noise`."""
        style = sample if self._cfg.styles is None else sample % self._cfg.styles
        shared = style_noise(self.seed, style, tuple(own.shape))
        return math.sqrt(1 - self._cfg.share) * own + math.sqrt(self._cfg.share) * shared
