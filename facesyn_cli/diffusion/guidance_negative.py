"""Guidance away from other identities.

    out = (1 + w) pos - w neg = neg + s (pos - neg),    s = 1 + w

* NegFaceDiff, arXiv:2508.09661: neg is the output under the context of another identity, w = 0.5 throughout.
* AdaptDiff, arXiv:2603.29569: w(t) = w (1 - t / T), so nothing is pushed away while the image is still noise.

Sampling only: any conditional LDM will do, it need not know the empty context unless that is the negative.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.diffusion.guidance import Guidance, LinearGuidance
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class NegativeConfig(PluginConfig):
    """Settings of `negfacediff` and what `adaptdiff` shares with it."""

    scale: float = affects_result(1.5, "s = 1 + w of the paper; 1 is off", ge=1)
    negative: Literal["empty", "close", "mid", "far", "random"] = affects_result(
        "close", "whom to guide away from: nobody in particular, or an identity by its cosine"
    )
    contexts: Path | None = input_path(
        None, "ContextSet or .npy the negatives come from; None: the one that is sampled"
    )


class AdaptiveConfig(NegativeConfig):
    """Settings of `adaptdiff`."""

    scale: float = affects_result(2.0, "s = 1 + w at the last moment, t = 0; 1 is off", ge=1)


@register(
    "guidance",
    "negfacediff",
    Card(
        "guidance away from another identity (close, mid, far, random) or from the empty context; two evaluations a"
        " step",
        "NegFaceDiff, arXiv:2508.09661",
    ),
)
def build_negfacediff(cfg: NegativeConfig) -> Guidance:
    """Return guidance by a fixed scale."""
    return LinearGuidance(lambda step: cfg.scale, _negatives(cfg))


@register(
    "guidance",
    "adaptdiff",
    Card(
        "as negfacediff, with a strength that grows from 0 at pure noise to its full value at the image",
        "AdaptDiff, arXiv:2603.29569",
    ),
)
def build_adaptdiff(cfg: AdaptiveConfig) -> Guidance:
    """Return guidance whose w grows as the noise falls."""
    return LinearGuidance(lambda step: 1 + (cfg.scale - 1) * (1 - step.time), _negatives(cfg))


def _negatives(cfg: NegativeConfig) -> str | None:
    return None if cfg.negative == "empty" else cfg.negative
