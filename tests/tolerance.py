"""How far two correct evaluations of one formula may lie apart: from eps, the length of sums and the scale.

Processors add in other orders (vector width, blocks of a matrix product, threads, fused multiply-add), so results
differ from machine to machine. Where both sides can be computed in float64, tests do that; where a side is float32 (a
golden vector, an ONNX file, a command), the tolerance is `rounding(...)`, never a difference seen on one machine.
"""

from __future__ import annotations

import math

import torch

MARGIN = 8  # both sides round, the largest of many elements is compared, and terms are not of one size


def rounding(terms: int = 1, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference that rounding explains: `MARGIN` u sqrt(terms) scale, with u = eps / 2.

    Every addition of a sum rounds by at most u of the partial sum, up or down; over n of them that grows as sqrt(n)
    (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5)).
    Sums in a row, each of the results of the one before, add theirs in the same way, so that their lengths add up.

    Args:
        terms: Number of products added up on the way to a result: length of a dot product, `products_of` a network.
        scale: Spread of the values compared; where they went through a steep function f, times |f'|.
        dtype: Type of the less exact side.
    """
    size = scale.detach().item() if isinstance(scale, torch.Tensor) else float(scale)
    return MARGIN * torch.finfo(dtype).eps / 2 * math.sqrt(terms) * size


def products_of(*modules: torch.nn.Module) -> int:
    """Return the number of products added up on the way through networks: inputs per output, over all layers."""
    return sum(value[0].numel() for module in modules for value in module.parameters() if value.ndim > 1)


def layers_of(module: torch.nn.Module) -> int:
    """Return the number of layers with weights: in half precision each rounds its outputs, its sums are float32."""
    return sum(value.ndim > 1 for value in module.parameters())
