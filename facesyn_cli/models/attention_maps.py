"""Attention maps of one pass through a network: recorded, and put into another pass in place of its own.

A map is softmax(q k^T / sqrt(D)), (B, A, L, S): how much each of L positions reads from each of S sources, per
head. Injection keeps the values of the second pass and replaces what it would have read. Nothing leaves the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tap = Callable[[Tensor, Tensor], Tensor]  # queries (B, A, L, D) and keys (B, A, S, D) -> map (B, A, L, S)


class TappedContext(NamedTuple):
    """Keys and values of a block's context, and what makes the block's attention maps in place of the usual."""

    keys: Tensor
    values: Tensor
    self_tap: Tap
    cross_tap: Tap


class AttentionMaps:
    """The maps of all blocks of a pass, in the order of the blocks; the next recording replaces them."""

    def __init__(self) -> None:
        self._self: dict[int, Tensor] = {}
        self._cross: dict[int, Tensor] = {}

    @property
    def cross(self) -> list[Tensor]:
        """Maps of the attention to the context, (B, A, L, S) of each block."""
        return [self._cross[block] for block in sorted(self._cross)]

    def record(self, block: int) -> tuple[Tap, Tap]:
        """Return the taps (self, cross) of a block that note its maps and leave them as they are."""

        def record_self(q: Tensor, k: Tensor) -> Tensor:
            self._self[block] = attention_map(q, k)
            return self._self[block]

        def record_cross(q: Tensor, k: Tensor) -> Tensor:
            self._cross[block] = attention_map(q, k)
            return self._cross[block]

        return record_self, record_cross

    def inject(self, block: int, with_cross: bool) -> tuple[Tap, Tap]:
        """Return the taps (self, cross) of a block that replace its maps by the recorded ones.

        Args:
            with_cross: Replace the map to the context as well.
        """
        cross: Tap = (lambda q, k: self._cross[block]) if with_cross else attention_map
        return (lambda q, k: self._self[block]), cross


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) over the sources, (B, A, L, S) float32."""
    return torch.softmax((q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1]), dim=-1)
