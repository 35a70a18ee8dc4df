"""CurricularFace: Huang et al. 2020, arXiv:2004.00288, Eqs. 5-10.

Target as in ArcFace; other classes with cos_j > cos(theta_y + m) get s cos_j (t + cos_j), t a moving average of
the mean target cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.fixed_margin import AngularConfig
from facesyn_cli.models.heads.margin import MarginHead, angular_target, cos_of_sum
from facesyn_cli.plugins.registry import Card, register


class CurricularFaceConfig(AngularConfig):
    """Settings of `curricularface`."""

    rate: float = affects_result(0.1, "alpha, weight of the newest mean in t", gt=0, le=1)


@register(
    "head", "curricularface",
    Card("Angular margin; the weight of hard negatives grows during training.", "Huang et al. 2020, arXiv:2004.00288"),
)
class CurricularFace(MarginHead):
    """Angular margin with a weight of hard negatives that grows during training; `margin` in radians.

    The buffer `t` (1,) starts at 0. `observe` updates it with the mean target cosine of the global batch; published
    code (TFace, rate 0.1) does so inside the forward pass, before t is used.
    """

    num_statistics = 1

    def __init__(self, cfg: CurricularFaceConfig) -> None:
        super().__init__(cfg.scale, cfg.margin)
        self.cfg = cfg
        self.register_buffer("t", torch.zeros(1))

    def statistics(self, embeddings: Tensor, target: Tensor) -> Tensor:
        return target.sum()[None]

    @torch.no_grad()
    def observe(self, sums: Tensor, count: int) -> None:
        self.t.lerp_((sums / count).to(self.t), self.cfg.rate)

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        is_hard = cosines > cos_of_sum(target, self.margin)
        others = torch.where(is_hard, cosines * (self.t + cosines), cosines)
        return torch.where(is_target, angular_target(target, self.margin), others)
