"""NormFace: Wang et al. 2017, arXiv:1704.06369. Logits s cos_j: embeddings and centers normalized, no margin.

The default s = 64 is that of the margin heads, for comparison; the value in the paper was not checked.
"""

from __future__ import annotations

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.heads.margin import MarginHead
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class NormFaceConfig(PluginConfig):
    """Settings of `normface`."""

    scale: float = affects_result(64.0, "s, factor of all logits; fixed, not learned", gt=0)


class NormFace(MarginHead):
    """Scaled cosines as they are."""

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        return cosines


@register("head", "normface", Card("Scaled cosines without a margin.", "Wang et al. 2017, arXiv:1704.06369"))
def build_normface(cfg: NormFaceConfig) -> nn.Module:
    """Build the NormFace head."""
    return NormFace(cfg.scale)
