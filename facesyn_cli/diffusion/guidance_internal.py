"""The guidance `internal`: away from what the first blocks of the network predict.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507, section 3, guide a
network by a weaker one under the same context, which makes the same errors, only larger ones:

    out = weak + s (pos - weak)

s = 1 is off. As under classifier-free guidance, a larger s makes the images of a person cleaner, more alike and more
saturated.
"""

# Differs from Karras et al.: the weaker network is no second network but a second prediction of the same one, read
# after its first blocks and trained with it (`early_output` of the denoiser `dit`). So a step costs one evaluation, not
# two.

from __future__ import annotations

from typing import Any

from torch import Tensor

from facesyn_cli.diffusion.guidance import CfgConfig, Guidance, Network, Predict, Step
from facesyn_cli.plugins.registry import Card, register


class InternalConfig(CfgConfig):
    """Settings of `internal`: `scale`, `start` and `end`, as of `cfg`."""


@register(
    "guidance", "internal",
    Card("away from the early prediction of the same network; one evaluation per step; needs an LDM with a denoiser dit"
         " trained with early_output",
         "Karras et al. 2024, arXiv:2406.02507, with a prediction of the first blocks as the weaker network"),
)
class Internal(Guidance):
    """Guidance by an early prediction; see `Guidance`."""

    negatives = None
    needs_attention = False
    needs_early_output = True

    def __init__(self, cfg: InternalConfig) -> None:
        self._cfg = cfg

    def evaluations(self, step: Step) -> int:
        """Return 1."""
        return 1

    def begin(self, positive: Any, negative: Any) -> Predict:
        """Return the function that combines the two predictions; see `Guidance.begin`."""

        def predict(network: Network, step: Step) -> Tensor:
            scale = self._cfg.scale_at(step)
            if scale == 1:
                return network(positive)
            output, early = network.with_early(positive)
            return early + scale * (output - early)

        return predict
