"""Record the attention maps of one forward pass and inject them into another one.

A map is softmax(q k^T / sqrt(D)), (B, A, L, S): the attention weights of L positions over S sources, per head A.
Injection keeps the values of the second pass and replaces its attention weights. Maps stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tap = Callable[[Tensor, Tensor], Tensor]  # queries (B, A, L, D) and keys (B, A, S, D) -> map (B, A, L, S)


class TappedContext(NamedTuple):
    """Keys and values of the context of a block, and functions that compute its attention maps."""

    keys: Tensor
    values: Tensor
    self_tap: Tap
    cross_tap: Tap


class AttentionMaps:
    """The maps of all blocks of a forward pass; the next recording replaces them."""

    def __init__(self) -> None:
        self._self: dict[int, Tensor] = {}
        self._cross: dict[int, Tensor] = {}

    @property
    def cross(self) -> list[Tensor]:
        """Cross-attention maps, (B, A, L, S) of each block."""
        return [self._cross[block] for block in sorted(self._cross)]

    def record(self, block: int) -> tuple[Tap, Tap]:
        """Return the taps (self, cross) of a block that record its maps."""

        def recorder(maps: dict[int, Tensor]) -> Tap:
            def tap(q: Tensor, k: Tensor) -> Tensor:
                maps[block] = attention_map(q, k)
                return maps[block]

            return tap

        return recorder(self._self), recorder(self._cross)

    def inject(self, block: int, with_cross: bool) -> tuple[Tap, Tap]:
        """Return the taps (self, cross) of a block that replace its maps by the recorded ones.

        Args:
            block: Number of the block.
            with_cross: Replace the cross-attention map as well.
        """
        cross: Tap = (lambda q, k: self._cross[block]) if with_cross else attention_map
        return (lambda q, k: self._self[block]), cross


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) over the sources, (B, A, L, S) float32."""
    return torch.softmax((q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1]), dim=-1)
