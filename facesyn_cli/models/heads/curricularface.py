"""CurricularFace: Huang et al. 2020, arXiv:2004.00288, Eqs. 5-10.

Target as in ArcFace; other classes with cos_j > cos(theta_y + m) get s cos_j (t + cos_j), t a moving average of
the mean target cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.arcface import AngularConfig
from facesyn_cli.models.heads.margin import MarginHead, angular_target, cos_of_sum
from facesyn_cli.plugins.registry import Card, register


class CurricularFaceConfig(AngularConfig):
    """Settings of `curricularface`."""

    rate: float = affects_result(0.1, "alpha, weight of the newest mean in t", gt=0, le=1)


class CurricularFace(MarginHead):
    """Angular margin, and hard negatives that count for more as training goes on; `margin` in radians.

    The buffer `t` () starts at 0. `observe` moves it towards the mean target cosine of the global batch;
    published code (TFace, rate 0.1) does so inside the forward pass, before t is used.

    Args:
        rate: alpha, weight of the new mean in t.
    """

    num_statistics = 1

    def __init__(
        self,
        scale: float = 64.0,
        margin: float = 0.5,
        rate: float = 0.1,
    ) -> None:
        super().__init__(scale, margin)
        self.rate = rate
        self.register_buffer("t", torch.zeros(1))

    def statistics(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.target_cosines(embeddings, labels).sum()[None]

    @torch.no_grad()
    def observe(self, sums: Tensor, count: int) -> None:
        self.t.lerp_((sums / count).to(self.t), self.rate)

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        is_hard = cosines > cos_of_sum(target, self.margin)
        others = torch.where(is_hard, cosines * (self.t + cosines), cosines)
        return torch.where(is_target, angular_target(target, self.margin), others)


@register(
    "head", "curricularface",
    Card("Angular margin; hard negatives count for more over time.", "Huang et al. 2020, arXiv:2004.00288"),
)
def build_curricularface(cfg: CurricularFaceConfig) -> nn.Module:
    """Build the CurricularFace head."""
    return CurricularFace(scale=cfg.scale, margin=cfg.margin, rate=cfg.rate)
