"""MagFace: Meng et al. 2021, arXiv:2103.06627: the margin grows with the feature norm, which then measures quality.

    a = clip(|f|, l_a, u_a), l_a = 10, u_a = 110
    m(a) linear in a, from l_m = 0.45 at l_a to u_m = 0.8 at u_a
    target as in ArcFace with m(a); loss + lambda g(a), g(a) = 1 / a + a / u_a^2, lambda = 35

The gradient also runs through m(a). g'(a) = 1 / u_a^2 - 1 / a^2 is negative below u_a and 0 there: easy images are
pulled to large norms, against the margin that grows with them. l_m = u_m and lambda = 0 is ArcFace.
"""

from __future__ import annotations

import math

import torch
from pydantic import model_validator
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead, ScaleConfig, angular_target
from facesyn_cli.plugins.registry import Card, register


class MagFaceConfig(ScaleConfig):
    """Settings of `magface`."""

    margin: float = affects_result(0.45, "l_m, margin at the smallest norm, radians", ge=0, lt=math.pi / 2)
    max_margin: float = affects_result(0.8, "u_m, margin at the largest norm, radians", ge=0, lt=math.pi / 2)
    min_norm: float = affects_result(10.0, "l_a, smallest norm", gt=0)
    max_norm: float = affects_result(110.0, "u_a, largest norm", gt=0)
    norm_weight: float = affects_result(35.0, "lambda, weight of g(a) in the loss", ge=0)

    @model_validator(mode="after")
    def _rise(self) -> MagFaceConfig:
        if self.min_norm >= self.max_norm or self.margin > self.max_margin:
            raise ValueError("min_norm must be below max_norm, and margin not above max_margin")
        return self


@register(
    "head", "magface",
    Card("Margin that grows with the feature norm, a measure of quality.", "Meng et al. 2021, arXiv:2103.06627"),
)
class MagFace(MarginHead):
    """Angular margin that grows with the norm, and a loss term that favors large norms; margins in radians."""

    def __init__(self, cfg: MagFaceConfig) -> None:
        super().__init__(cfg.scale, cfg.margin)
        self.cfg = cfg

    def extra_losses(self, embeddings: Tensor) -> Tensor | None:
        """Return lambda g(a), (B,)."""
        norms = self._norms(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        return self.cfg.norm_weight * (1 / norms + norms / self.cfg.max_norm**2)

    def margins(self, embeddings: Tensor) -> Tensor:
        """Return m(a), (B, 1)."""
        slope = (self.cfg.max_margin - self.margin) / (self.cfg.max_norm - self.cfg.min_norm)
        return self.margin + slope * (self._norms(embeddings) - self.cfg.min_norm)[:, None]

    def _norms(self, embeddings: Tensor) -> Tensor:
        return embeddings.norm(dim=1).clamp(self.cfg.min_norm, self.cfg.max_norm)

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return angular_target(target, self.margins(embeddings))
