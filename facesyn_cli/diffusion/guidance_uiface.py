"""Two-stage sampling of UIFace (ICLR 2025, arXiv:2502.19803): first any face, then this identity.

Every step begins with a pass under the empty context, whose attention maps are noted.

* Stage 1, t / T >= `switch`: a second pass with the self-attention maps of the first. Every sample is under the
  empty context until its map to the context has settled, then under its identity. No guidance.
* Stage 2: a second pass under the identity with the self- and cross-attention maps of the first, and
  out = (1 + w) identity - w empty.

A sample has settled once the root mean square change of its map to the context from one step to the next is below
`settled`; the map is averaged over heads, taken through a softmax over the tokens and scaled to [0, 1].

# Differs from UIFace: which layers it averages over, and how it transfers the statistics of maps, are not known to
# us. Here the maps of all blocks count, each scaled by itself, and injection is replacement. Nothing is copied to
# the host, where the published code copies x and 50 samples' maps at every step.

How far a map moves in a step depends on the network and the number of steps, so `settled` wants a look at another
LDM than the published one: where nothing settles, identity begins with stage 2 for all samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.guidance import Guidance, Network, Predict, Step
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class UifaceConfig(PluginConfig):
    """Settings of `uiface`; the defaults are the published ones."""

    scale: float = affects_result(2.0, "s = 1 + w of stage 2; published cfg_scale w = 1", ge=1)
    switch: float = affects_result(0.5, "t / T below which stage 2 begins; published step_th 500 of 1000", ge=0, le=1)
    settled: float = affects_result(0.006, "change of the map to the context below which identity begins", ge=0)


@register(
    "guidance",
    "uiface",
    Card(
        "two-stage sampling: empty context first, identity once cross-attention settles, attention injection; two"
        " evaluations a step; wants an LDM with a learned empty context, trained with whole-context dropout",
        "UIFace, arXiv:2502.19803",
    ),
)
def build_uiface(cfg: UifaceConfig) -> Guidance:
    """Return two-stage sampling."""
    return _Uiface(cfg)


class _Uiface:
    negatives = None
    needs_attention = True

    def __init__(self, cfg: UifaceConfig) -> None:
        self._cfg = cfg

    def evaluations(self, step: Step) -> int:
        """Return 2: one pass under the empty context, one with its attention maps."""
        return 2

    def begin(self, positive: Any, negative: Any) -> Predict:
        """Return the two stages for a batch; see `Guidance.begin`. `negative` is the empty context."""
        empty, maps = negative.recording()
        by_identity = positive.injecting(maps, with_cross=True)
        state: dict[str, Tensor] = {}

        def predict(network: Network, step: Step) -> Tensor:
            away = network(empty)
            if step.time < self._cfg.switch:
                return away + self._cfg.scale * (network(by_identity) - away)
            seen = scaled_maps(maps.cross)                                             # (B, K)
            settled = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
            if state:
                change = (seen - state["seen"]).square().mean(dim=1).sqrt()            # (B,)
                settled = state["settled"] | (change < self._cfg.settled)
            state.update(seen=seen, settled=settled)
            return network(positive.where(settled, negative).injecting(maps, with_cross=False))

        return predict


def scaled_maps(maps: list[Tensor]) -> Tensor:
    """Return maps to the context in the form whose change is measured.

    Args:
        maps: (B, A, L, S) softmax maps of each block.

    Returns:
        (B, K): of each block, the scores averaged over heads, their softmax over the tokens, scaled to [0, 1].
    """
    scaled = []
    for map_ in maps:
        scores = map_.clamp_min(torch.finfo(map_.dtype).tiny).log().mean(dim=1)        # (B, L, S), up to a constant
        rows = scores.softmax(dim=-1).flatten(1)                                       # (B, L S)
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        scaled.append((rows - low) / (high - low).clamp_min(1e-12))
    return torch.cat(scaled, dim=1)
