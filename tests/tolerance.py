"""How far two correct evaluations of one formula may lie apart: from eps, the length of sums, depth and scale.

Processors add in other orders (vector width, blocks of a matrix product, threads, fused multiply-add), so results
differ from machine to machine. Where both sides can be computed in float64, tests do that; where a side is float32 (a
golden vector, an ONNX file, a command), the tolerance is `rounding(...)`, never a difference seen on one machine.
"""

from __future__ import annotations

import math

import torch

MARGIN = 8  # both sides round, the largest of many elements is compared, and terms are not of one size


def rounding(
    terms: int = 1, *, layers: int = 1, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32
) -> float:
    """Return the largest difference that rounding explains: `MARGIN` u sqrt(terms layers) scale, u = eps / 2.

    Every addition of a sum rounds by at most u of the partial sum, up or down; over n of them that grows as sqrt(n)
    (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5)).
    Sums in a row, each of the results of the one before, add their roundings in the same way.

    Args:
        terms: Number of products in the longest sum: inputs of a linear layer, k k C of a k x k convolution.
        layers: Number of such sums in a row.
        scale: Spread of the values compared; where they go through a steep function f, times |f'|.
        dtype: Type in which the less exact side was computed.
    """
    return MARGIN * torch.finfo(dtype).eps / 2 * math.sqrt(terms * layers) * float(scale)
