"""ArcFace: Deng et al. 2019, arXiv:1801.07698, Eq. 3.

Target s cos(theta_y + m), other classes s cos_j. Beyond theta_y + m = pi (cos_y <= cos(pi - m)) the target is
s (cos_y - m sin(pi - m)), which keeps it decreasing.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead, angular_target
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class AngularConfig(PluginConfig):
    """Settings of heads with one margin in the angle."""

    scale: float = affects_result(64.0, "s, factor of all logits", gt=0)
    margin: float = affects_result(0.5, "m, radians", ge=0, lt=math.pi / 2)


class ArcFace(MarginHead):
    """Additive angular margin; `margin` in radians."""

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return angular_target(target, self.margin)


@register("head", "arcface", Card("Additive angular margin.", "Deng et al. 2019, arXiv:1801.07698"))
def build_arcface(cfg: AngularConfig) -> nn.Module:
    """Build the ArcFace head."""
    return ArcFace(cfg.scale, cfg.margin)
