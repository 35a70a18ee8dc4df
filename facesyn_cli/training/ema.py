"""Exponential moving average of the weights.

The decay grows with the number n of updates made so far, as published for diffusion models of this family:

    decay(n) = clip(1 - (1 + s / inv_gamma)^-power, minimum, maximum),  s = max(0, n - 1)
    average <- decay(n) average + (1 - decay(n)) weights
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facesyn_cli.plugins.settings import Settings


class EmaSettings(Settings):
    """Decay of the average of the weights."""

    inv_gamma: float = Field(1.0, gt=0, description="updates after which the decay begins to rise")
    power: float = Field(0.75, gt=0, description="how fast it rises; 2/3 for more than 1M steps")
    minimum: float = Field(0.0, ge=0, le=1, description="lowest decay")
    maximum: float = Field(0.9999, ge=0, le=1, description="highest decay")


def ema_decay(num_updates: int, settings: EmaSettings) -> float:
    """Return the decay of update number `num_updates` (1 for the first, whose decay is the minimum)."""
    s = max(0, num_updates - 1)
    decay = 1.0 - (1.0 + s / settings.inv_gamma) ** -settings.power if s else 0.0
    return min(max(decay, settings.minimum), settings.maximum)


class Ema:
    """An averaged float32 copy of a module.

    Running statistics of BatchNorm are averaged too: they describe the outputs of the layers before them, so those of
    the newest weights would not fit averaged ones. Other buffers are copied.

    Attributes:
        module: The averaged copy, in eval mode, without gradients; usable for validation and previews.
    """

    # Differs from IDiff-Face / ADMIS: their decay is written to an attribute of a buffer and stays 0 where it is read,
    # so their average is a copy of the current weights. This one averages.

    def __init__(self, module: nn.Module, settings: EmaSettings) -> None:
        self.settings = settings
        self.module = copy.deepcopy(module).float().eval().requires_grad_(False)
        self._averages, self._copies = _averaged_and_copied(self.module)

    @torch.no_grad()
    def update(self, module: nn.Module, num_updates: int) -> None:
        """Move the average towards the weights and buffers of `module`.

        Args:
            module: The trained module, same structure as the averaged one.
            num_updates: How many optimizer steps were taken, this one included.
        """
        averaged, copied = _averaged_and_copied(module)
        share = 1.0 - ema_decay(num_updates, self.settings)
        torch._foreach_lerp_(self._averages, [value.detach().float() for value in averaged], share)
        if copied:
            torch._foreach_copy_(self._copies, copied)


def _averaged_and_copied(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights and running statistics of a module, and its other buffers."""
    statistics = [
        buffer for layer in module.modules() if isinstance(layer, _BatchNorm)
        for buffer in layer.buffers(recurse=False) if buffer.is_floating_point()
    ]
    known = {id(buffer) for buffer in statistics}
    return [*module.parameters(), *statistics], [buffer for buffer in module.buffers() if id(buffer) not in known]
