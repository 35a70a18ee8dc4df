"""ElasticFace: Boutros et al. 2022, arXiv:2109.09416: a random margin E ~ N(m, sigma) for every image.

* `elasticface-arc`: target s cos(theta_y + E), as ArcFace beyond pi; m 0.5, sigma 0.05.
* `elasticface-cos`: target s (cos_y - E); m 0.35, sigma 0.05.
* `-plus`: the drawn margins are sorted within the batch, so that the image with the smallest cos_y gets the largest
  margin; sigma 0.0175 (Arc); 0.025 (Cos) was not checked against the paper.

sigma = 0 is ArcFace, or CosFace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead, ScaleConfig, angular_target
from facesyn_cli.plugins.registry import Card, register

_PAPER = "Boutros et al. 2022, arXiv:2109.09416"


class ElasticArcConfig(ScaleConfig):
    """Settings of `elasticface-arc`."""

    margin: float = affects_result(0.5, "m, mean of the margins, radians", ge=0, lt=math.pi / 2)
    deviation: float = affects_result(0.05, "sigma of the margins", ge=0, lt=1)


class ElasticArcPlusConfig(ElasticArcConfig):
    """Settings of `elasticface-arc-plus`."""

    deviation: float = affects_result(0.0175, "sigma of the margins", ge=0, lt=1)


class ElasticCosConfig(ScaleConfig):
    """Settings of `elasticface-cos`."""

    margin: float = affects_result(0.35, "m, mean of the margins, a cosine", ge=0, lt=1)
    deviation: float = affects_result(0.05, "sigma of the margins", ge=0, lt=1)


class ElasticCosPlusConfig(ElasticCosConfig):
    """Settings of `elasticface-cos-plus`."""

    deviation: float = affects_result(0.025, "sigma of the margins", ge=0, lt=1)


class ElasticFace(MarginHead):
    """A random margin for each image in training; the mean margin in eval mode.

    Margins are drawn from torch's default generator of the device, which a training step seeds for each group of
    images right before the head: they depend on seed, step and group only. Draws are clamped to [0, pi / 2), with the
    published settings 10 deviations away.

    Args:
        cfg: Settings.
        is_angular: True: margins are angles (Arc); False: cosines (Cos).
        is_sorted: Assign larger margins to harder images (+).
    """

    def __init__(self, cfg: ElasticArcConfig | ElasticCosConfig, is_angular: bool, is_sorted: bool) -> None:
        super().__init__(cfg.scale, cfg.margin)
        self.cfg = cfg
        self.is_angular, self.is_sorted = is_angular, is_sorted

    def draw_margins(self, target: Tensor) -> Tensor:
        """Return the margins (B, 1) of images whose target cosines are (B, 1); without gradient."""
        if not self.training:
            return torch.full_like(target, self.margin)
        margins = self.margin + self.cfg.deviation * torch.randn_like(target)
        margins = margins.clamp(0, math.pi / 2 - 1e-6)
        if self.is_sorted:
            order = target.detach().argsort(dim=0, descending=True, stable=True)
            margins = torch.empty_like(margins).scatter_(0, order, margins.sort(dim=0).values)
        return margins

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        margins = self.draw_margins(target)
        return angular_target(target, margins) if self.is_angular else target - margins


@register("head", "elasticface-arc", Card("ArcFace with a random margin for each image.", _PAPER))
def build_elasticface_arc(cfg: ElasticArcConfig) -> nn.Module:
    """Build the ElasticFace-Arc head."""
    return ElasticFace(cfg, is_angular=True, is_sorted=False)


@register("head", "elasticface-arc-plus", Card("ElasticFace-Arc; harder images get larger margins.", _PAPER))
def build_elasticface_arc_plus(cfg: ElasticArcPlusConfig) -> nn.Module:
    """Build the ElasticFace-Arc+ head."""
    return ElasticFace(cfg, is_angular=True, is_sorted=True)


@register("head", "elasticface-cos", Card("CosFace with a random margin for each image.", _PAPER))
def build_elasticface_cos(cfg: ElasticCosConfig) -> nn.Module:
    """Build the ElasticFace-Cos head."""
    return ElasticFace(cfg, is_angular=False, is_sorted=False)


@register("head", "elasticface-cos-plus", Card("ElasticFace-Cos; harder images get larger margins.", _PAPER))
def build_elasticface_cos_plus(cfg: ElasticCosPlusConfig) -> nn.Module:
    """Build the ElasticFace-Cos+ head."""
    return ElasticFace(cfg, is_angular=False, is_sorted=True)
