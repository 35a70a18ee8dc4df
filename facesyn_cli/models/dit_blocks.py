"""Building blocks of the transformer on latent patches: block, attention, patches, positions.

Block: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 (adaLN-zero), with the tables of Chen et al. 2023,
"PixArt-alpha", arXiv:2310.00426, section 2.3. RMSNorm of queries and keys: Dehghani et al. 2023, arXiv:2302.05442,
section 2.1.

Shapes: B batch, C latent channels, p patch, L tokens of the image, N width, A heads, D = N / A width of a head,
S context tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6  # of all norms
_WAVELENGTHS = 10_000  # of the positions: from 2 pi to this times 2 pi tokens


class Block(nn.Module):
    """Attention and MLP, each with a modulated LayerNorm before and a gate behind it.

    Args:
        width: N of the tokens.
        heads: A.
        mlp_ratio: Hidden width of the MLP, relative to N.
        dropout: Dropout in the hidden layer of the MLP.
        has_context: See `JointAttention`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, has_context: bool) -> None:
        super().__init__()
        hidden = round(mlp_ratio * width)
        self.table = nn.Parameter(torch.zeros(6, width))
        self.attention = JointAttention(width, heads, has_context)
        self.up = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor, modulation: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the tokens (B, L, N) after this block.

        Args:
            h: (B, L, N) tokens.
            modulation: (B, 6, N): shift, scale and gate of the attention, and of the MLP.
            keys: (B, A, S, D) of the context, normalized.
            values: (B, A, S, D) of the context.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).split(1, dim=1)  # 6 x (B, 1, N)
        h = h + gate1 * self.attention(modulated(h, shift1, scale1), keys, values)
        hidden = F.gelu(self.up(modulated(h, shift2, scale2)), approximate="tanh")
        return h + gate2 * self.down(self.dropout(hidden))


class JointAttention(nn.Module):
    """Multi-head attention of tokens to themselves and to the context tokens, in one softmax.

    Args:
        width: N of the tokens.
        heads: A.
        has_context: Whether there are context tokens, with projections of their own.
    """

    def __init__(self, width: int, heads: int, has_context: bool) -> None:
        super().__init__()
        self.heads = heads
        for name in ("to_q", "to_k", "to_v", *(("context_k", "context_v") if has_context else ())):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.q_norm, self.k_norm = HeadNorm(width // heads), HeadNorm(width // heads)
        self.proj_out = nn.Linear(width, width)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each (B, A, S, D), of context tokens (B, S, N)."""
        if not tokens.shape[1]:
            empty = self._split(tokens)
            return empty, empty
        return self.k_norm(self._split(self.context_k(tokens))), self._split(self.context_v(tokens))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what each token of x (B, L, N) reads, (B, L, N).

        Args:
            x: (B, L, N).
            keys: (B, A, S, D) of the context, from `read`.
            values: (B, A, S, D) of the context, from `read`.
        """
        q, k, v = (self._split(part) for part in self._projected(x))
        q, k = self.q_norm(q), self.k_norm(k)
        if keys.shape[2]:
            k, v = torch.cat([k, keys.to(k.dtype)], dim=2), torch.cat([v, values.to(v.dtype)], dim=2)
        y = F.scaled_dot_product_attention(q, k, v)                                # (B, A, L, D)
        return self.proj_out(y.transpose(1, 2).flatten(2))

    def fuse(self) -> None:
        """Replace the layers of queries, keys and values by one, for inference."""
        layers = (self.to_q, self.to_k, self.to_v)
        self.register_buffer("to_qkv", torch.cat([layer.weight.detach() for layer in layers]))   # (3 N, N)
        del self.to_q, self.to_k, self.to_v

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self, "to_qkv"):
            return F.linear(x, self.to_qkv).chunk(3, dim=2)
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)                    # (B, A, L, D)


class HeadNorm(nn.Module):
    """RMSNorm of queries or keys of one head, in the number format of its input; see `torch.nn.RMSNorm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., D) with a root mean square of 1, times the weight."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), _EPS)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Return the patches (B, L, C p^2) of latents (B, C, H, W), row by row; in a patch channel, row, column."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))                      # (B, C, H/p, p, W/p, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Return the latents (B, C, rows p, columns p) of patches (B, rows columns, C p^2); inverse of `patchify`."""
    x = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, columns))      # (B, rows, columns, C, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(
    rows: int, columns: int, width: int, device: torch.device | str = "cpu", step: float = 1.0
) -> Tensor:
    """Return the fixed positions of a grid of tokens, (rows columns, width) float32.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5, in two dimensions: the first half of the width has sines and
    cosines of the row, the second half those of the column. Token n is at (n + 1/2) step - 1/2, so that the 1 / step
    tokens that divide a larger one lie around it.
    """
    half = torch.arange(width // 4, device=device, dtype=torch.float32)
    frequency = torch.exp(half * (-math.log(_WAVELENGTHS) / (width // 4)))

    def waves(count: int) -> Tensor:
        place = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * step - 0.5
        angle = place[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)                        # (count, width / 2)

    down, across = waves(rows)[:, None].expand(-1, columns, -1), waves(columns).expand(rows, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)


def normed(h: Tensor) -> Tensor:
    """Return the LayerNorm of tokens (..., N), without weights."""
    return F.layer_norm(h, h.shape[-1:], eps=_EPS)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) LayerNorm(h) + shift of tokens (B, L, N), with a scale and a shift (B, 1, N)."""
    return normed(h) * (1 + scale) + shift
