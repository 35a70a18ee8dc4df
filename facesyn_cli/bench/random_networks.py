"""Networks with random weights, made in memory, and the operations of one pass through them.

Weights are normal with variance 1 / fan-in, norms near 1: activations have ordinary sizes at every layer, so that
nothing is faster or slower than with trained weights.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facesyn_cli.models.meta_networks import build_on_meta
from facesyn_cli.plugins import registry


def random_network(kind: str, settings: dict[str, Any]) -> nn.Module:
    """Return a denoiser, autoencoder or backbone in eval mode, its numbers drawn from the names of its entries."""
    module = build_on_meta(kind, registry.configure(kind, settings))
    state = {key: _draw(key, value) for key, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def flops(kind: str, settings: dict[str, Any], run: Callable[[nn.Module], Any]) -> int:
    """Return the floating-point operations of a pass: two for each multiplication of convolutions and products.

    `run` is called with the network on the meta device and runs it on one image.
    """
    module = build_on_meta(kind, registry.configure(kind, settings)).eval()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(module)
    return counter.get_total_flops()


def _draw(key: str, like: torch.Tensor) -> torch.Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if like.ndim >= 2:
        return numbers / math.sqrt(math.prod(like.shape[1:]))
    if key.endswith("running_var"):
        return 1 + 0.1 * numbers.abs()
    return 1 + 0.1 * numbers if key.endswith("weight") else 0.1 * numbers
