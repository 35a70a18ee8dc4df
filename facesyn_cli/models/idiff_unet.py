"""The identity-conditioned UNet of IDiff-Face and ADMIS, with the published parameter names.

Boutros et al. 2023, "IDiff-Face: Synthetic-based Face Recognition through Fizzy Identity-Conditioned Diffusion Models",
arXiv:2308.04995: predicts the noise eps of a latent, conditioned on a face embedding. Contextual partial dropout (CPD)
drops components of the projected context in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facesyn_cli.config.fields import affects_result, runtime_only
from facesyn_cli.models.attention_maps import AttentionMaps, Tap, TappedContext
from facesyn_cli.models.idiff_blocks import (
    NORM_GROUPS,
    CrossAttentionBlock,
    ResidualBlock,
    SelfAttentionBlock,
    TimeEmbedding,
    downsample,
    upsample,
    zeroed,
)
from facesyn_cli.models.pose_embedding import PoseEmbedding, split_pose
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class UnetConfig(PluginConfig):
    """Settings of `idiff-unet`; the defaults are the published `unet_cond_ca_cpd25`."""

    in_channels: int = affects_result(3, "channels of the latent: 3 for vq-f4, 16 for TAESD3", ge=1)
    channels: int = affects_result(96, "width of the first level", ge=NORM_GROUPS, multiple_of=NORM_GROUPS)
    multipliers: tuple[int, ...] = affects_result((1, 2, 2, 2), "width of each level over the one before (cumulative)")
    attention: tuple[bool, ...] = affects_result(
        (False, True, True, True), "levels with attention; the middle always has it"
    )
    head_channels: int = affects_result(32, "width of one attention head; cross-attention: also number of tokens", ge=1)
    num_blocks: int = affects_result(2, "residual blocks per level on the way down; one more on the way up", ge=1)
    conditioning: Literal["ca", "adagn", "unconditional"] = affects_result(
        "ca", "conditioning on the context: cross-attention, adaptive group norm, or none"
    )
    context_size: int = affects_result(512, "size of the face embedding", ge=1)
    context_width: int = affects_result(256, "size of the projected context", ge=NORM_GROUPS, multiple_of=NORM_GROUPS)
    component_dropout: float = affects_result(
        0.25, "CPD: probability of dropping a component of the projected context in training", ge=0, lt=1
    )
    learn_empty_context: bool = affects_result(False, "learn the vector of the empty context; false: zeros")
    pose: bool = affects_result(False, "take the yaw of the face as a second condition")
    checkpoint_activations: bool = runtime_only(False, "recompute blocks in the backward pass: less memory, slower")

    @model_validator(mode="after")
    def _agree(self) -> UnetConfig:
        if not self.multipliers or len(self.multipliers) != len(self.attention):
            raise ValueError(
                f"multipliers ({len(self.multipliers)}) and attention ({len(self.attention)}) must have one entry "
                "per level, at least one"
            )
        if min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be 1 or more, got {list(self.multipliers)}")
        for width in (self.channels, *self.widths):
            if width % self.head_channels:
                raise ValueError(f"the width of every level ({width}) must be divisible by head_channels "
                                 f"({self.head_channels})")
        for name in ("learn_empty_context", "pose"):
            if getattr(self, name) and self.conditioning == "unconditional":
                raise ValueError(f"{name} needs a conditional network (conditioning ca or adagn)")
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * math.prod(self.multipliers[: i + 1]) for i in range(len(self.multipliers))]


@dataclass(frozen=True)
class ContextState:
    """The encoded contexts of a batch for all blocks, computed once for all steps of a sampler.

    The result of `ConditionalUNet.encode_context`; valid for the weights, dtype and device it was computed with.
    """

    batch: int
    per_block: tuple[Any, ...]
    pose: Tensor | None = None  # (B, 4 * channels), added to the embedding of the timestep; None: nothing

    def recording(self) -> tuple[ContextState, AttentionMaps]:
        """Return these contexts with recording of attention maps, and the recorded maps."""
        maps = AttentionMaps()
        return self._tapped(maps.record), maps

    def injecting(self, maps: AttentionMaps, with_cross: bool) -> ContextState:
        """Return these contexts with injection of recorded attention maps.

        Args:
            maps: Maps of an earlier pass.
            with_cross: Inject cross-attention maps too, not only self-attention maps.
        """
        return self._tapped(lambda block: maps.inject(block, with_cross))

    def where(self, condition: Tensor, other: ContextState) -> ContextState:
        """Return these contexts where `condition` (B,) is true, else those of `other`."""

        def choose(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(condition.view(-1, *[1] * (a.ndim - 1)), a, b)

        pose = _by_tensor(choose, self.pose, other.pose)
        return ContextState(self.batch, _by_tensor(choose, self.per_block, other.per_block), pose)

    def joined(self, other: ContextState) -> ContextState:
        """Return the contexts of this batch followed by those of another."""
        per_block, pose = (_by_tensor(lambda a, b: torch.cat([a, b]), *parts) for parts in
                           ((self.per_block, other.per_block), (self.pose, other.pose)))
        return ContextState(self.batch + other.batch, per_block, pose)

    def _tapped(self, taps: Callable[[int], tuple[Tap, Tap]]) -> ContextState:
        per_block = []
        for number, parts in enumerate(self.per_block):
            per_block.append(tuple(
                TappedContext(*part[:2], *taps(number)) if isinstance(part, tuple) else part for part in parts or ()
            ))
        return ContextState(self.batch, tuple(per_block), self.pose)


def _by_tensor(combine: Callable[[Tensor, Tensor], Tensor], first: Any, other: Any) -> Any:
    """Combine the tensors of two equally nested tuples; None stays None."""
    if isinstance(first, tuple):
        return tuple(_by_tensor(combine, a, b) for a, b in zip(first, other, strict=True))
    return None if first is None else combine(first, other)


@register(
    "denoiser", "idiff-unet",
    Card(about="Identity-conditioned UNet of IDiff-Face and ADMIS; 216 M parameters with its defaults",
         paper="Boutros et al. 2023, arXiv:2308.04995",
         input="latents whose side is divisible by 2^(levels-1), timesteps 0..999, face embedding of unit length",
         license="published weights: CC BY-NC-SA 4.0 (IDiff-Face); none stated (ADMIS)"),
)
class ConditionalUNet(nn.Module):
    """Predict the noise in a latent, given its timestep and a face embedding; with random weights.

    Shapes: B batch, C latent channels, H x W latent grid (sides divisible by `downscale`), E context width.
    """

    hidden_layers = ("down", "middle", "up")

    def __init__(self, cfg: UnetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels = cfg.in_channels
        self.downscale = 2 ** (len(cfg.multipliers) - 1)
        self.is_conditional = cfg.conditioning != "unconditional"
        self.takes_pose = cfg.pose
        self.has_attention_maps = cfg.conditioning == "ca"  # its contexts can record and inject them
        self.checkpoint_activations = cfg.checkpoint_activations
        widths = cfg.widths
        self.image_proj = nn.Conv2d(cfg.in_channels, cfg.channels, 3, padding=1)
        self.time_emb = TimeEmbedding(cfg.channels, 4 * cfg.channels)
        if self.is_conditional:
            self.context_emb = nn.Linear(cfg.context_size, cfg.context_width)
        if cfg.pose:
            self.pose_emb = PoseEmbedding(4 * cfg.channels)
        if cfg.learn_empty_context:
            self.empty_context_embedding = nn.Parameter(torch.empty(cfg.context_width))
            nn.init.normal_(self.empty_context_embedding)

        width, skips = cfg.channels, [cfg.channels]
        self.down = nn.ModuleList()
        for level, channels in enumerate(widths):
            for _ in range(cfg.num_blocks):
                self.down.append(Block(cfg, width, channels, cfg.attention[level]))
                skips.append(width := channels)
            if level + 1 < len(widths):
                self.down.append(downsample(channels))
                skips.append(channels)
        self.middle = Middle(cfg, width)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for block in range(cfg.num_blocks + 1):
                # the last block of a level already has the width of the level above
                channels = widths[level] // (cfg.multipliers[level] if block == cfg.num_blocks else 1)
                self.up.append(Block(cfg, width + skips.pop(), channels, cfg.attention[level]))
                width = channels
            if level:
                self.up.append(upsample(width))
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        self.final = zeroed(nn.Conv2d(width, cfg.in_channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | ContextState | None = None, drop_context: Tensor | None = None,
        component_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the predicted noise, (B, C, H, W).

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, unscaled.
            context: (B, context_size) face embeddings, with `pose` also (B, context_size + 1) with the yaw in degrees;
                None for the empty context; or the result of `encode_context`, without the other arguments. Ignored by
                an unconditional network.
            drop_context: (B,) bool; True replaces the context of this sample by the empty one.
            component_mask: (B, E) bool, components that CPD keeps, also in eval mode; they are scaled by
                1 / (1 - component_dropout). None: drawn from torch's global generator in training, off in eval mode.

        Raises:
            ValueError: The shape of the latents does not fit the network.
        """
        if x.shape[1] != self.in_channels or x.shape[2] % self.downscale or x.shape[3] % self.downscale:
            raise ValueError(
                f"expected latents (B, {self.in_channels}, H, W) with H and W divisible by {self.downscale}, "
                f"got {tuple(x.shape)}"
            )
        if not isinstance(context, ContextState):
            context = self.encode_context(context, drop_context, component_mask, batch=len(x))
        elif drop_context is not None or component_mask is not None:
            raise ValueError("drop_context and component_mask must be given to encode_context, not with its result")
        if context.batch != len(x):
            raise ValueError(f"{context.batch} contexts for {len(x)} latents")
        states = iter(context.per_block)

        time = self.time_emb(t)                                                    # (B, 4 * channels)
        if context.pose is not None:
            time = time + context.pose
        h = self.image_proj(x)
        skips = [h]
        for module in self.down:
            h = self._run(module, h, time, states)
            skips.append(h)
        h = self._run(self.middle, h, time, states)
        for module in self.up:
            if isinstance(module, Block):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(module, h, time, states)
        return self.final(F.silu(self.norm(h)))

    def encode_context(
        self, context: Tensor | None, drop_context: Tensor | None = None, component_mask: Tensor | None = None,
        batch: int | None = None,
    ) -> ContextState:
        """Encode the contexts for every block; arguments as in `forward`.

        Args:
            batch: Number of latents; required without a context.
        """
        batch = batch if context is None else len(context)
        if batch is None:
            raise ValueError("without a context, encode_context needs the batch size")
        if not self.is_conditional:
            return ContextState(batch, tuple(None for _ in self._blocks()))
        yaw, pose = None, None
        if context is not None:
            context, yaw = split_pose(context, self.cfg.context_size, self.takes_pose)
        c = self._project(context, drop_context, component_mask, batch)
        if self.takes_pose:  # also of unknown yaw, so that contexts with and without it can be joined
            pose = self.pose_emb(c.new_full((batch,), math.nan) if yaw is None else yaw)
        return ContextState(batch, tuple(block.encode_context(c) for block in self._blocks()), pose)

    def _project(
        self, context: Tensor | None, drop_context: Tensor | None, component_mask: Tensor | None, batch: int
    ) -> Tensor:
        """Return the context vector of all blocks, (batch, E)."""
        weight = self.context_emb.weight
        empty = self.empty_context_embedding if self.cfg.learn_empty_context else weight.new_zeros(weight.shape[0])
        if context is None:
            c = empty.expand(batch, -1)
        else:
            c = self.context_emb(context)
            if drop_context is not None:
                c = torch.where(drop_context[:, None], empty.to(c.dtype), c)
        p = self.cfg.component_dropout
        if component_mask is not None:
            return c * component_mask.to(c.dtype) / (1 - p)
        return F.dropout(c, p, training=self.training)

    def _blocks(self) -> Iterator[Block | Middle]:
        for module in (*self.down, self.middle, *self.up):
            if isinstance(module, (Block, Middle)):
                yield module

    def _run(self, module: nn.Module, h: Tensor, time: Tensor, states: Iterator) -> Tensor:
        if not isinstance(module, (Block, Middle)):
            return module(h)
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(module, h, time, next(states), use_reentrant=False)
        return module(h, time, next(states))


class Block(nn.Module):
    """A residual block and, on some levels, attention."""

    def __init__(self, cfg: UnetConfig, in_channels: int, channels: int, has_attention: bool) -> None:
        super().__init__()
        self.res = _residual(cfg, in_channels, channels)
        self.attn = _attention(cfg, channels) if has_attention else None

    def encode_context(self, context: Tensor) -> tuple[Any, Any]:
        return self.res.encode_context(context), self.attn.encode_context(context) if self.attn else None

    def forward(self, x: Tensor, time: Tensor, state: tuple[Any, Any] | None) -> Tensor:
        for_res, for_attn = state or (None, None)
        x = self.res(x, time, for_res)
        return self.attn(x, for_attn) if self.attn else x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, cfg: UnetConfig, channels: int) -> None:
        super().__init__()
        self.res1 = _residual(cfg, channels, channels)
        self.attn = _attention(cfg, channels)
        self.res2 = _residual(cfg, channels, channels)

    def encode_context(self, context: Tensor) -> tuple[Any, Any, Any]:
        return tuple(part.encode_context(context) for part in (self.res1, self.attn, self.res2))

    def forward(self, x: Tensor, time: Tensor, state: tuple[Any, Any, Any] | None) -> Tensor:
        for_res1, for_attn, for_res2 = state or (None, None, None)
        return self.res2(self.attn(self.res1(x, time, for_res1), for_attn), time, for_res2)


def _residual(cfg: UnetConfig, in_channels: int, channels: int) -> ResidualBlock:
    context_width = cfg.context_width if cfg.conditioning == "adagn" else None
    return ResidualBlock(in_channels, channels, 4 * cfg.channels, context_width)


def _attention(cfg: UnetConfig, channels: int) -> nn.Module:
    if cfg.conditioning == "ca":
        return CrossAttentionBlock(channels, cfg.head_channels, cfg.context_width)
    return SelfAttentionBlock(channels, cfg.head_channels)
