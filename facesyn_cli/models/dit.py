"""The denoiser `dit`: a transformer on patches of latents.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748: tokens are patches, blocks are
modulated by the condition and start as the identity (adaLN-zero, section 3.2). Chen et al. 2023, "PixArt-alpha",
arXiv:2310.00426, section 2.3: one projection of the condition for all blocks, and a learned table for each
(adaLN-single). Queries and keys have an RMSNorm: Dehghani et al. 2023, arXiv:2302.05442, section 2.1.

The face embedding acts in two ways: added to the timestep, it modulates the blocks, and as `context_tokens` tokens it
joins the keys and values of every self-attention.

Shapes: B batch, C latent channels, H x W latent grid, p patch, L = H/p * W/p tokens, N width, K blocks, A heads,
D = N / A width of a head, S context tokens, E width of the projected context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.idiff_blocks import TimeEmbedding
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_TIME_CHANNELS = 256
_EPS = 1e-6  # of all norms
_WAVELENGTHS = 10_000  # of the positions: from 2 pi to this times 2 pi tokens


class DitConfig(PluginConfig):
    """Settings of `dit`."""

    in_channels: int = affects_result(16, "channels of the latent: 16 for TAESD3, 3 for vq-f4", ge=1)
    patch: int = affects_result(2, "side of the square of latent pixels that makes a token", ge=1)
    width: int = affects_result(384, "width of a token", ge=4, multiple_of=4)
    depth: int = affects_result(6, "number of blocks", ge=1)
    heads: int = affects_result(6, "attention heads; the width is divided among them", ge=1)
    mlp_ratio: float = affects_result(4.0, "hidden width of the MLP of a block, relative to `width`", gt=0)
    dropout: float = affects_result(0.0, "dropout in the hidden layer of every MLP, in training", ge=0, lt=1)
    context_size: int = affects_result(512, "size of the face embedding", ge=1)
    context_width: int = affects_result(512, "size of the projected context", ge=1)
    context_tokens: int = affects_result(
        4, "tokens of the context that attention reads; 0: the context only modulates the blocks", ge=0
    )
    component_dropout: float = affects_result(
        0.0, "CPD: probability of dropping a component of the projected context in training", ge=0, lt=1
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DitConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be divisible by heads ({self.heads})")
        return self


@dataclass(frozen=True)
class EncodedContext:
    """The contexts of a batch as the blocks read them, computed once for all steps of a sampler.

    Args:
        signal: (B, N), added to the embedding of the timestep.
        keys: (B, K, A, S, D), normalized, of the context tokens in every block.
        values: (B, K, A, S, D).
    """

    signal: Tensor
    keys: Tensor
    values: Tensor

    def joined(self, other: EncodedContext) -> EncodedContext:
        """Return the contexts of this batch followed by those of another."""
        return EncodedContext(torch.cat([self.signal, other.signal]), torch.cat([self.keys, other.keys]),
                              torch.cat([self.values, other.values]))


@register(
    "denoiser", "dit",
    Card(about="Transformer on patches of latents; 15 M parameters with its defaults",
         paper="Peebles and Xie 2023, arXiv:2212.09748; Chen et al. 2023, arXiv:2310.00426, section 2.3",
         input="latents whose side is divisible by `patch`, timesteps 0..1000, face embedding of unit length"),
)
class DiffusionTransformer(nn.Module):
    """Predict noise, velocity or latent from a noisy latent, its timestep and a face embedding.

    With random weights it returns zeros.
    """

    is_conditional = True

    def __init__(self, cfg: DitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels, self.downscale = cfg.in_channels, cfg.patch
        width = cfg.width
        self.enter = nn.Linear(cfg.in_channels * cfg.patch**2, width)
        self.time_emb = TimeEmbedding(_TIME_CHANNELS, width)
        self.context_emb = nn.Linear(cfg.context_size, cfg.context_width)
        self.empty_context = nn.Parameter(torch.zeros(cfg.context_width))
        self.from_context = nn.Linear(cfg.context_width, width)
        if cfg.context_tokens:
            self.to_tokens = nn.Linear(cfg.context_width, cfg.context_tokens * width)
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.last_table = nn.Parameter(torch.zeros(2, width))
        self.leave = nn.Linear(width, cfg.in_channels * cfg.patch**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | EncodedContext | None = None,
        drop_context: Tensor | None = None, component_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction, (B, C, H, W).

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, unscaled.
            context: (B, context_size) face embeddings of unit length; None for the empty context, which is learned; or
                the result of `encode_context`, without the other arguments.
            drop_context: (B,) bool; True replaces the context of this sample by the empty one.
            component_mask: (B, E) bool, the components that CPD keeps (Boutros et al. 2023, arXiv:2308.04995), in
                training or not; they are scaled by 1 / (1 - component_dropout). None: drawn in training from torch's
                global generator, off in eval mode.

        Raises:
            ValueError: The latents do not fit the network, or their number is not that of the contexts.
        """
        height, width = x.shape[2:]
        if x.shape[1] != self.in_channels or height % self.downscale or width % self.downscale:
            raise ValueError(f"expected latents (B, {self.in_channels}, H, W) with H and W divisible by "
                             f"{self.downscale}, got {tuple(x.shape)}")
        if not isinstance(context, EncodedContext):
            context = self.encode_context(context, drop_context, component_mask, batch=len(x))
        elif drop_context is not None or component_mask is not None:
            raise ValueError("drop_context and component_mask must be given to encode_context, not with its result")
        if len(context.signal) != len(x):
            raise ValueError(f"{len(context.signal)} contexts for {len(x)} latents")
        rows, columns = height // self.downscale, width // self.downscale
        h = self.enter(patchify(x, self.downscale))                                # (B, L, N)
        h = h + positions(rows, columns, self.cfg.width, x.device).to(h.dtype)
        condition = F.silu(self.time_emb(t) + context.signal)                      # (B, N)
        modulation = self.modulate(condition).unflatten(1, (6, -1))                # (B, 6, N)
        for block, keys, values in zip(self.blocks, context.keys.unbind(1), context.values.unbind(1), strict=True):
            h = block(h, modulation, keys, values)
        shift, scale = (condition[:, None] + self.last_table).split(1, dim=1)      # 2 x (B, 1, N)
        return unpatchify(self.leave(_modulated(h, shift, scale)), rows, columns, self.downscale)

    def encode_context(
        self, context: Tensor | None, drop_context: Tensor | None = None, component_mask: Tensor | None = None,
        batch: int | None = None,
    ) -> EncodedContext:
        """Encode the contexts for every block; arguments as in `forward`.

        Args:
            batch: Number of latents; required without a context.
        """
        batch = batch if context is None else len(context)
        if batch is None:
            raise ValueError("without a context, encode_context needs the batch size")
        c = self._project(context, drop_context, component_mask, batch)
        if self.cfg.context_tokens:
            tokens = _normed(self.to_tokens(c).unflatten(1, (self.cfg.context_tokens, -1)))       # (B, S, N)
        else:
            tokens = c.new_zeros(batch, 0, self.cfg.width)
        pairs = [block.attention.read(tokens) for block in self.blocks]
        return EncodedContext(self.from_context(c), *(torch.stack(part, 1) for part in zip(*pairs, strict=True)))

    def _project(
        self, context: Tensor | None, drop_context: Tensor | None, component_mask: Tensor | None, batch: int
    ) -> Tensor:
        """Return the projected context, (batch, E)."""
        c = self.empty_context.expand(batch, -1)
        if context is not None:
            seen = self.context_emb(context * self.cfg.context_size**0.5)  # components of about 1
            c = seen if drop_context is None else torch.where(drop_context[:, None], c.to(seen.dtype), seen)
        p = self.cfg.component_dropout
        if component_mask is not None:
            return c * component_mask.to(c.dtype) / (1 - p)
        return F.dropout(c, p, training=self.training)


class Block(nn.Module):
    """Attention and MLP, each with a modulated LayerNorm before and a gate behind it; the identity at first."""

    def __init__(self, cfg: DitConfig) -> None:
        super().__init__()
        hidden = round(cfg.mlp_ratio * cfg.width)
        self.table = nn.Parameter(torch.zeros(6, cfg.width))
        self.attention = JointAttention(cfg.width, cfg.heads, cfg.context_tokens > 0)
        self.up = nn.Linear(cfg.width, hidden)
        self.dropout = nn.Dropout(cfg.dropout)
        self.down = nn.Linear(hidden, cfg.width)

    def forward(self, h: Tensor, modulation: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the tokens (B, L, N) after this block.

        Args:
            h: (B, L, N) tokens.
            modulation: (B, 6, N): shift, scale and gate of the attention, and of the MLP.
            keys: (B, A, S, D) of the context, normalized.
            values: (B, A, S, D) of the context.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).split(1, dim=1)  # 6 x (B, 1, N)
        h = h + gate1 * self.attention(_modulated(h, shift1, scale1), keys, values)
        hidden = F.gelu(self.up(_modulated(h, shift2, scale2)), approximate="tanh")
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


def positions(rows: int, columns: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the fixed positions of a grid of tokens, (rows columns, width) float32.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.5, in two dimensions: the first half of the width has sines and
    cosines of the row, the second half those of the column.
    """
    half = torch.arange(width // 4, device=device, dtype=torch.float32)
    frequency = torch.exp(half * (-math.log(_WAVELENGTHS) / (width // 4)))

    def waves(count: int) -> Tensor:
        angle = torch.arange(count, device=device, dtype=torch.float32)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)                        # (count, width / 2)

    down, across = waves(rows)[:, None].expand(-1, columns, -1), waves(columns).expand(rows, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)


def _normed(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=_EPS)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return _normed(h) * (1 + scale) + shift
