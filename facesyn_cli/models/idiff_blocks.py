"""Building blocks of the identity-conditioned UNet: residual blocks, attention, down- and upsampling.

Boutros et al. 2023, "IDiff-Face", arXiv:2308.04995, with the parameter names of its published checkpoints.
Residual block with adaptive group norm: Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.
Cross-attention: Rombach et al. 2022, arXiv:2112.10752, Eq. 3; softmax(q k^T / sqrt(d)) v per head of width d.

Shapes: B batch, C channels, H x W latent grid, L = H*W positions, S context tokens, E context width,
A heads, D width of one head.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.models.attention_maps import Tap, TappedContext

NORM_GROUPS = 32  # of all group norms of the published network; widths are multiples of it


class TimeEmbedding(nn.Module):
    """Embedding of timesteps: sinusoids, linear, SiLU, linear.

    The sinusoids are [cos(t f_j), sin(t f_j)] with f_j = exp(-ln(10000) j / half), j = 0 .. half-1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.lin1 = nn.Linear(channels, width)
        self.lin2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Return the embeddings (B, width) of unscaled timesteps (B,)."""
        steps = torch.arange(self.half, device=t.device, dtype=torch.float32)
        frequency = torch.exp(steps * (-math.log(10_000) / self.half))             # (half,)
        angle = t.float()[:, None] * frequency                                     # (B, half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)                       # (B, channels)
        return self.lin2(F.silu(self.lin1(waves.to(self.lin1.weight.dtype))))


class ResidualBlock(nn.Module):
    """Two convolutions with an adaptive group norm, modulated by the time (and, for AdaGN, the context).

    Args:
        in_channels: Channels of the input; if different from `channels`, the shortcut is a 1x1 convolution.
        channels: Channels of the output.
        time_width: Width of the time vector.
        context_width: Width E of the context vector added to the time (AdaGN); None without context.
    """

    def __init__(self, in_channels: int, channels: int, time_width: int, context_width: int | None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(time_width, channels))
        if context_width is not None:
            self.context_emb = nn.Sequential(nn.SiLU(), nn.Linear(context_width, channels))
        self.scale_emb = nn.Linear(channels, channels)
        self.shift_emb = nn.Linear(channels, channels)
        self.norm2 = AdaptiveGroupNorm(channels)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def encode_context(self, context: Tensor) -> Tensor | None:
        """Return the term (B, C) that the context (B, E) adds to the time embedding, or None."""
        return self.context_emb(context) if hasattr(self, "context_emb") else None

    def forward(self, x: Tensor, time: Tensor, added: Tensor | None = None) -> Tensor:
        """Map features (B, in_channels, H, W) to (B, C, H, W).

        Args:
            time: (B, time_width).
            added: The result of `encode_context`.
        """
        h = self.conv1(F.silu(self.norm1(x)))                                      # (B, C, H, W)
        e = self.time_emb(time)                                                    # (B, C)
        if added is not None:
            e = e + added
        h = self.norm2(h, self.scale_emb(e), self.shift_emb(e))
        return self.conv2(F.silu(h)) + self.shortcut(x)


class AdaptiveGroupNorm(nn.Module):
    """(1 + scale) GroupNorm(x) + shift with a scale and a shift per sample and channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (1 + scale[:, :, None, None]) * self.norm(x) + shift[:, :, None, None]


class Attention(nn.Module):
    """Multi-head attention over positions; heads are contiguous groups of channels.

    The published layers are convolutions of width 1; here they run as linear layers, which have faster kernels.

    Args:
        channels: Width C of the queries and of the output.
        source_channels: Width of the source of keys and values.
        head_channels: Width D of one head.
    """

    def __init__(self, channels: int, source_channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.to_q = nn.Conv1d(channels, channels, 1)
        self.to_k = nn.Conv1d(source_channels, channels, 1)
        self.to_v = nn.Conv1d(source_channels, channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each (B, A, S, D), of a source (B, S, source_channels)."""
        return self._split(_linear(self.to_k, source)), self._split(_linear(self.to_v, source))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor] | None = None, tap: Tap | None = None) -> Tensor:
        """Return the attention output (B, L, C) of queries x (B, L, C).

        Args:
            x: (B, L, C).
            keys_values: Keys and values; None: of x itself.
            tap: Function that computes the attention map (`attention_maps.py`); None: a fused kernel.
        """
        k, v = self.keys_values(x) if keys_values is None else keys_values
        q = self._split(_linear(self.to_q, x))
        # Differs from IDiff-Face: the product is scaled once by D^(-1/2) instead of q and k by D^(-1/4) each,
        # so that fused kernels apply.
        y = F.scaled_dot_product_attention(q, k, v) if tap is None else tap(q, k).to(v.dtype) @ v  # (B, A, L, D)
        return _linear(self.proj_out, y.transpose(1, 2).flatten(2))                # (B, L, C)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_channels)).transpose(1, 2)            # (B, A, L, D)


class SelfAttentionBlock(nn.Module):
    """Residual self-attention over positions (AdaGN variants)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.attention = Attention(channels, channels, head_channels)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)

    def encode_context(self, context: Tensor) -> None:
        """Return None: in these variants the context acts in the residual blocks."""
        return None

    def forward(self, x: Tensor, context_keys_values: None = None) -> Tensor:
        y = self.attention(_rows(self.norm(x)))                                    # (B, L, C)
        return x + _grid(y, x)


class CrossAttentionBlock(nn.Module):
    """Self-attention, cross-attention to tokens of the context, and a feed-forward network.

    As published, all three share one group norm (`x_norm`), and there are as many tokens as channels of a head.

    Args:
        channels: Width C of the features.
        head_channels: Width D of one head, and number S of context tokens.
        context_width: Width E of the context vector and of one token.
    """

    def __init__(self, channels: int, head_channels: int, context_width: int) -> None:
        super().__init__()
        self.context_width = context_width
        self.x_proj_in = nn.Conv2d(channels, channels, 1)
        self.x_proj_out = zeroed(nn.Conv2d(channels, channels, 1))
        self.self_attention = Attention(channels, channels, head_channels)
        self.c_proj_in = nn.Linear(context_width, context_width * head_channels)
        self.cross_attention = Attention(channels, context_width, head_channels)
        self.x_norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.c_norm = nn.GroupNorm(NORM_GROUPS, context_width)
        self.ff = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def encode_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, each (B, A, S, D), of a context vector (B, E)."""
        tokens = self.c_proj_in(context).unflatten(1, (self.context_width, -1))    # (B, E, S), channel-major
        return self.cross_attention.keys_values(self.c_norm(tokens).transpose(1, 2))

    def forward(self, x: Tensor, context_keys_values: tuple[Tensor, Tensor] | TappedContext) -> Tensor:
        """Return the output (B, C, H, W); `context_keys_values` is the result of `encode_context`."""
        k, v, *taps = context_keys_values
        self_tap, cross_tap = taps or (None, None)
        y = _linear(self.x_proj_in, _rows(x))                                      # (B, L, C)
        y = y + self.self_attention(self._normed(y, x), tap=self_tap)
        y = y + self.cross_attention(self._normed(y, x), (k, v), cross_tap)
        y = y + self.ff(self._normed(y, x))
        return x + _grid(_linear(self.x_proj_out, y), x)

    def _normed(self, y: Tensor, x: Tensor) -> Tensor:
        return _rows(self.x_norm(_grid(y, x)))                                     # (B, L, C)


def downsample(channels: int) -> nn.Module:
    """Return a layer that halves the grid with a strided 3x3 convolution."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, channels, 3, stride=2, padding=1)))


def upsample(channels: int) -> nn.Module:
    """Return a layer that doubles the grid with a transposed 4x4 convolution."""
    return nn.Sequential(OrderedDict(conv=nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)))


def _rows(x: Tensor) -> Tensor:
    """Return features (B, C, H, W) as rows of positions (B, L, C); no copy for channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def _grid(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of positions (B, L, C) as features (B, C, H, W) of the grid of `like`, channels last in memory."""
    return rows.transpose(1, 2).unflatten(2, like.shape[2:])


def _linear(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution of width 1 to rows (B, L, C_in) of positions; returns (B, L, C_out)."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialize a last layer, for example of a residual branch, to zero; return it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
