"""AdaFace: Kim et al. 2022, arXiv:2204.00964: the margin adapts to image quality, estimated by the feature norm.

    a = clip(|f|, 0.001, 100), without gradient
    z = clip((a - mu) / (sigma / h), -1, 1), mu and sigma moving averages of the batch's mean and deviation
    g_angle = -m z, g_add = m + m z
    target s (cos(theta_y + g_angle) - g_add), the angle clipped to [0.001, pi - 0.001]; others s cos_j

z = -1 (poor image) is ArcFace, z = 0 CosFace, z = 1 (good image) a negative angular margin with an offset of 2 m.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead, ScaleConfig, cos_of_sum
from facesyn_cli.plugins.registry import Card, register

NORM_RANGE = (1e-3, 100.0)
MIN_ANGLE = 1e-3
_MIN_DEVIATION = 1e-3


class AdaFaceConfig(ScaleConfig):
    """Settings of `adaface`."""

    margin: float = affects_result(0.4, "m, radians and cosine", ge=0, lt=1)
    concentration: float = affects_result(0.333, "h, width of the quality scale in standard deviations is 1 / h", gt=0)
    rate: float = affects_result(0.01, "t_alpha, weight of the newest mean and deviation", gt=0, le=1)


@register("head", "adaface", Card("Margin that adapts to image quality.", "Kim et al. 2022, arXiv:2204.00964"))
class AdaFace(MarginHead):
    """Margin that adapts to the norm of an embedding; `margin` is both an angle and a cosine.

    Buffers `norm_mean`, `norm_deviation` (1,) and `num_observed` () are set by the first batch, which the paper leaves
    open, and updated by later ones. Mean and deviation (over B - 1) are those of the global batch and so do not depend
    on the number of processes.
    """

    num_statistics = 2

    def __init__(self, cfg: AdaFaceConfig) -> None:
        super().__init__(cfg.scale, cfg.margin)
        self.cfg = cfg
        self.register_buffer("norm_mean", torch.zeros(1))
        self.register_buffer("norm_deviation", torch.ones(1))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.int64))

    def statistics(self, embeddings: Tensor, target: Tensor) -> Tensor:
        norms = _norms(embeddings)
        return torch.stack([norms.sum(), norms.square().sum()])

    @torch.no_grad()
    def observe(self, sums: Tensor, count: int) -> None:
        mean = sums[:1] / count
        variance = (sums[1:] - count * mean.square()) / max(count - 1, 1)
        rate = torch.where(self.num_observed == 0, 1.0, self.cfg.rate)
        self.norm_mean.lerp_(mean.to(self.norm_mean), rate.to(self.norm_mean))
        self.norm_deviation.lerp_(variance.clamp(min=0).sqrt().to(self.norm_deviation), rate.to(self.norm_deviation))
        self.num_observed += 1

    def quality(self, embeddings: Tensor) -> Tensor:
        """Return z (B, 1) in [-1, 1], without gradient."""
        unit = self.norm_deviation.clamp(min=_MIN_DEVIATION) / self.cfg.concentration
        return ((_norms(embeddings) - self.norm_mean) / unit).clamp(-1, 1)[:, None]

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        z = self.quality(embeddings).to(target.dtype)
        added = -self.margin * z
        angle = target.detach().acos() + added
        inside = cos_of_sum(target, added)
        inside = torch.where(angle < MIN_ANGLE, math.cos(MIN_ANGLE), inside)
        inside = torch.where(angle > math.pi - MIN_ANGLE, math.cos(math.pi - MIN_ANGLE), inside)
        return inside - self.margin * (1 + z)


@torch.no_grad()
def _norms(embeddings: Tensor) -> Tensor:
    return embeddings.norm(dim=1).clamp(*NORM_RANGE)
