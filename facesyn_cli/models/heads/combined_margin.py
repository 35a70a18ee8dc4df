"""Combined margin: Deng et al. 2019, arXiv:1801.07698, Eq. 4. Target s (cos(m1 theta_y + m2) - m3), others s cos_j.

m1 = 1, m3 = 0 is ArcFace; m1 = 1, m2 = 0 is CosFace; m2 = m3 = 0 is SphereFace. Beyond phi = m1 theta_y + m2 = pi,
cos(phi) is replaced by -2 - cos(phi), which continues it and keeps decreasing (SphereFace, Liu et al. 2017,
arXiv:1704.08063, Eq. 7 with k = 1).

The source of the defaults s = 64, m2 = 0.3 and m3 = 0.2 was not checked.
"""

from __future__ import annotations

import math

import torch
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class CombinedMarginConfig(PluginConfig):
    """Settings of `combined-margin`."""

    scale: float = affects_result(64.0, "s, factor of all logits", gt=0)
    factor: float = affects_result(1.0, "m1, factor of the angle", gt=0, le=2)
    angle: float = affects_result(0.3, "m2, radians", ge=0, lt=math.pi / 2)
    cosine: float = affects_result(0.2, "m3, a cosine", ge=0, lt=1)

    @model_validator(mode="after")
    def _stays_below_two_pi(self) -> CombinedMarginConfig:
        if self.factor * math.pi + self.angle > 2 * math.pi:
            raise ValueError("factor * pi + angle must not pass 2 pi")
        return self


class CombinedMargin(MarginHead):
    """Multiplicative, angular and cosine margin together."""

    def __init__(self, cfg: CombinedMarginConfig) -> None:
        super().__init__(cfg.scale, cfg.angle)
        self.factor, self.cosine = cfg.factor, cfg.cosine

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        phi = self.factor * _angle(target) + self.margin
        changed = torch.where(phi <= math.pi, phi.cos(), -2 - phi.cos())
        return changed - self.cosine


def _angle(cosine: Tensor) -> Tensor:
    """Return acos; its derivative is defined as 0 at a cosine of exactly +-1."""
    is_regular = cosine.abs() < 1
    return torch.where(is_regular, torch.where(is_regular, cosine, 0.0).acos(), cosine.detach().acos())


@register(
    "head", "combined-margin",
    Card("Multiplicative, angular and cosine margin in one.", "Deng et al. 2019, arXiv:1801.07698, Eq. 4"),
)
def build_combined_margin(cfg: CombinedMarginConfig) -> nn.Module:
    """Build the combined-margin head."""
    return CombinedMargin(cfg)
