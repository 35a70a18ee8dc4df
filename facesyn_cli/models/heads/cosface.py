"""CosFace: Wang et al. 2018, arXiv:1801.09414, Eq. 4. Target s (cos_y - m), other classes s cos_j."""

from __future__ import annotations

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class CosFaceConfig(PluginConfig):
    """Settings of `cosface`."""

    scale: float = affects_result(64.0, "s, factor of all logits", gt=0)
    margin: float = affects_result(0.4, "m, a cosine", ge=0, lt=1)


class CosFace(MarginHead):
    """Additive cosine margin; `margin` is a cosine."""

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        return target - self.margin


@register("head", "cosface", Card("Additive cosine margin.", "Wang et al. 2018, arXiv:1801.09414"))
def build_cosface(cfg: CosFaceConfig) -> nn.Module:
    """Build the CosFace head."""
    return CosFace(cfg.scale, cfg.margin)
