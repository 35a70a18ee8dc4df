"""Two-stage sampling of UIFace (ICLR 2025, arXiv:2502.19803): an unconditional stage, then the identity.

Every step starts with a pass under the empty context, whose attention maps are recorded.

* Stage 1, t / T >= `switch`: a second pass with the self-attention maps of the first. A sample is under the empty
  context until its cross-attention map has settled, then under its identity. No guidance.
* Stage 2: a second pass under the identity with the self- and cross-attention maps of the first, and
  out = (1 + w) identity - w empty.

A sample has settled once the root mean square change of its cross-attention map between steps is below `settled`; the
map is averaged over heads, passed through a softmax over the tokens and scaled to [0, 1].

# Differs from UIFace: the layers that it averages over, and how it transfers the statistics of maps, are not published.
# Here the maps of all blocks are used, each scaled separately, and injection replaces maps. Maps stay on the device,
# while the published code copies x and the maps of 50 samples to the host at every step.

The change of a map per step depends on the network and the number of steps, so `settled` must be tuned for other LDMs
than the published one: if no sample settles, identities start with stage 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.guidance import Network, Predict, Step
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class UifaceConfig(PluginConfig):
    """Settings of `uiface`; the defaults are the published ones."""

    scale: float = affects_result(2.0, "s = 1 + w of stage 2; published cfg_scale w = 1", ge=1)
    switch: float = affects_result(0.5, "t / T below which stage 2 begins; published step_th 500 of 1000", ge=0, le=1)
    settled: float = affects_result(0.006, "change of the cross-attention map below which identity starts", ge=0)


@register(
    "guidance",
    "uiface",
    Card("two-stage sampling: empty context first, identity once cross-attention settles, attention injection; two"
         " evaluations per step; needs an LDM with a learned empty context, trained with whole-context dropout",
         "UIFace, arXiv:2502.19803"),
)
class Uiface:
    """Two-stage sampling; see `Guidance`."""

    negatives = None
    needs_attention = True

    def __init__(self, cfg: UifaceConfig) -> None:
        self._cfg = cfg

    def evaluations(self, step: Step) -> int:
        """Return 2: one pass under the empty context, one with its attention maps."""
        return 2

    def begin(self, positive: Any, negative: Any) -> Predict:
        """Return the prediction of both stages; see `Guidance.begin`. `negative` is the empty context."""
        empty, maps = negative.recording()
        by_identity = positive.injecting(maps, with_cross=True)
        state: dict[str, Any] = {}

        def predict(network: Network, step: Step) -> Tensor:
            away = network(empty)
            if step.time < self._cfg.switch:
                return away + self._cfg.scale * (network(by_identity) - away)
            scaled = scaled_maps(maps.cross)                                           # (B, K)
            settled = state["settled"] if state else torch.zeros(len(scaled), dtype=torch.bool, device=scaled.device)
            if state and step.index != state["index"]:
                change = (scaled - state["scaled"]).square().mean(dim=1).sqrt()        # (B,)
                settled = settled | (change < self._cfg.settled)
            state.update(scaled=scaled, settled=settled, index=step.index)
            return network(positive.where(settled, negative).injecting(maps, with_cross=False))

        return predict


def scaled_maps(maps: list[Tensor]) -> Tensor:
    """Return normalized cross-attention maps, whose change is measured.

    Args:
        maps: (B, A, L, S) softmax maps of each block.

    Returns:
        (B, K): for each block, scores averaged over heads, softmax over the tokens, scaled to [0, 1].
    """
    scaled = []
    for map_ in maps:
        scores = map_.clamp_min(torch.finfo(map_.dtype).tiny).log().mean(dim=1)        # (B, L, S), up to a constant
        rows = scores.softmax(dim=-1).flatten(1)                                       # (B, L S)
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        scaled.append((rows - low) / (high - low).clamp_min(1e-12))
    return torch.cat(scaled, dim=1)
