"""Heads without a margin or with the same margin for every image.

* Softmax: Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs": logits
  w_j . f + b_j, nothing normalized.
* NormFace: Wang et al. 2017, arXiv:1704.06369: logits s cos_j. The default s = 64 is that of the margin heads, for
  comparison; the value in the paper was not checked.
* CosFace: Wang et al. 2018, arXiv:1801.09414, Eq. 4: target s (cos_y - m), other classes s cos_j.
* ArcFace: Deng et al. 2019, arXiv:1801.07698, Eq. 3: target s cos(theta_y + m), others s cos_j. Beyond theta_y + m = pi
  (cos_y <= cos(pi - m)) the target is s (cos_y - m sin(pi - m)), which keeps it decreasing.
* Combined margin: Deng et al. 2019, Eq. 4: target s (cos(m1 theta_y + m2) - m3), others s cos_j. m1 = 1, m3 = 0 is
  ArcFace; m1 = 1, m2 = 0 is CosFace; m2 = m3 = 0 is SphereFace. Beyond phi = m1 theta_y + m2 = pi, cos(phi) is replaced
  by -2 - cos(phi), which continues it and keeps decreasing (SphereFace, Liu et al. 2017, arXiv:1704.08063, Eq. 7 with
  k = 1). The source of the defaults s = 64, m2 = 0.3 and m3 = 0.2 was not checked.
"""

from __future__ import annotations

import math

import torch
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import Head, MarginHead, ScaleConfig, angular_target
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SoftmaxConfig(PluginConfig):
    """`softmax` has no settings."""


class NormFaceConfig(PluginConfig):
    """Settings of `normface`."""

    scale: float = affects_result(64.0, "s, factor of all logits; fixed, not learned", gt=0)


class CosFaceConfig(ScaleConfig):
    """Settings of `cosface`."""

    margin: float = affects_result(0.4, "m, a cosine", ge=0, lt=1)


class AngularConfig(ScaleConfig):
    """Settings of heads with one margin in the angle."""

    margin: float = affects_result(0.5, "m, radians", ge=0, lt=math.pi / 2)


class CombinedMarginConfig(ScaleConfig):
    """Settings of `combined-margin`."""

    factor: float = affects_result(1.0, "m1, factor of the angle", gt=0, le=2)
    angle: float = affects_result(0.3, "m2, radians", ge=0, lt=math.pi / 2)
    cosine: float = affects_result(0.2, "m3, a cosine", ge=0, lt=1)

    @model_validator(mode="after")
    def _stays_below_two_pi(self) -> CombinedMarginConfig:
        if self.factor * math.pi + self.angle > 2 * math.pi:
            raise ValueError("factor * pi + angle must not pass 2 pi")
        return self


@register("head", "softmax", Card("A linear layer without margin, the baseline of the margin heads."))
class Softmax(Head):
    """A linear layer with biases (K,) that are initialized to 0.

    Shapes: embeddings (B, E) -> logits (B, K).
    """

    def __init__(self, cfg: SoftmaxConfig) -> None:
        super().__init__()

    def with_classes(self, num_classes: int, embedding_size: int = 512, seed: int = 0) -> Softmax:
        super().with_classes(num_classes, embedding_size, seed)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        return self

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, K) of embeddings (B, E); labels are not used."""
        return self.scores(embeddings)

    def logits_and_scores(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(embeddings, labels)
        return logits, logits.detach()

    def scores(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings.to(self.kernel.dtype) @ self.kernel + self.bias


@register("head", "normface", Card("Scaled cosines without a margin.", "Wang et al. 2017, arXiv:1704.06369"))
class NormFace(MarginHead):
    """Scaled cosines as they are."""

    def __init__(self, cfg: NormFaceConfig) -> None:
        super().__init__(cfg.scale)

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        return cosines


@register("head", "cosface", Card("Additive cosine margin.", "Wang et al. 2018, arXiv:1801.09414"))
class CosFace(MarginHead):
    """Additive cosine margin."""

    def __init__(self, cfg: CosFaceConfig) -> None:
        super().__init__(cfg.scale, cfg.margin)

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return target - self.margin


@register("head", "arcface", Card("Additive angular margin.", "Deng et al. 2019, arXiv:1801.07698"))
class ArcFace(MarginHead):
    """Additive angular margin."""

    def __init__(self, cfg: AngularConfig) -> None:
        super().__init__(cfg.scale, cfg.margin)

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return angular_target(target, self.margin)


@register(
    "head", "combined-margin",
    Card("Multiplicative, angular and cosine margin in one.", "Deng et al. 2019, arXiv:1801.07698, Eq. 4"),
)
class CombinedMargin(MarginHead):
    """Multiplicative, angular and cosine margin together."""

    def __init__(self, cfg: CombinedMarginConfig) -> None:
        super().__init__(cfg.scale)
        self.cfg = cfg

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        phi = self.cfg.factor * _angle(target) + self.cfg.angle
        changed = torch.where(phi <= math.pi, phi.cos(), -2 - phi.cos())
        return changed - self.cfg.cosine


def _angle(cosine: Tensor) -> Tensor:
    """Return acos; its derivative is defined as 0 at a cosine of exactly +-1."""
    is_regular = cosine.abs() < 1
    return torch.where(is_regular, torch.where(is_regular, cosine, 0.0).acos(), cosine.detach().acos())
