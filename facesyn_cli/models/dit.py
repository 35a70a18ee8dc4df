"""The denoiser `dit`: a transformer on patches of latents.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748: tokens are patches, blocks are
modulated by the condition and start as the identity (adaLN-zero, section 3.2). Chen et al. 2023, "PixArt-alpha",
arXiv:2310.00426, section 2.3: one projection of the condition for all blocks, and a learned table for each
(adaLN-single). Queries and keys have an RMSNorm: Dehghani et al. 2023, arXiv:2302.05442, section 2.1.

The face embedding acts in two ways: added to the timestep, it modulates the blocks, and as `context_tokens` tokens it
joins the keys and values of every self-attention. With `pose` the yaw of the head is added to the timestep as well.

With `token_drop` training is cheaper: a random share of the tokens bypasses the middle blocks. Krause et al. 2025,
"TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training", arXiv:2501.04765.

With `early_output` a second, weaker prediction is read after the first blocks, in the same pass, for the guidance
`internal`; it is trained with the network (`train-ldm early_weight`).

Smaller patches cost more and lower the FID (Peebles and Xie, section 5). `weights_of` lets a network of small patches
begin with the weights of one of large patches, which is cheaper to train.

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
from facesyn_cli.models.dit_blocks import Block, modulated, normed, patchify, positions, unpatchify
from facesyn_cli.models.idiff_blocks import TimeEmbedding
from facesyn_cli.models.pose_embedding import PoseEmbedding, split_pose
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_TIME_CHANNELS = 256


class DitConfig(PluginConfig):
    """Settings of `dit`."""

    in_channels: int = affects_result(16, "channels of the latent: 16 for TAESD3, 3 for vq-f4", ge=1)
    patch: int = affects_result(2, "side of the square of latent pixels that makes a token", ge=1)
    position_step: float = affects_result(
        1.0, "distance of neighboring tokens in the positions; 0.5 where the weights come from twice the patch", gt=0
    )
    width: int = affects_result(384, "width of a token", ge=4, multiple_of=4)
    depth: int = affects_result(6, "number of blocks", ge=1)
    heads: int = affects_result(6, "attention heads; the width is divided among them", ge=1)
    mlp_ratio: float = affects_result(4.0, "hidden width of the MLP of a block, relative to `width`", gt=0)
    dropout: float = affects_result(0.0, "dropout in the hidden layer of every MLP, in training", ge=0, lt=1)
    token_drop: float = affects_result(
        0.0, "share of the tokens that bypass the middle blocks in training (TREAD); 0.5 saves a third of a step",
        ge=0, le=0.9,
    )
    early_output: int | None = affects_result(
        None, "number of blocks after which a second, weaker prediction is read, for guidance `internal`; None: none",
        ge=1,
    )
    context_size: int = affects_result(512, "size of the face embedding", ge=1)
    context_width: int = affects_result(512, "size of the projected context", ge=1)
    context_tokens: int = affects_result(
        4, "tokens of the context that attention reads; 0: the context only modulates the blocks", ge=0
    )
    component_dropout: float = affects_result(
        0.0, "CPD: probability of dropping a component of the projected context in training", ge=0, lt=1
    )
    pose: bool = affects_result(False, "take the yaw of the face as a second condition")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DitConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be divisible by heads ({self.heads})")
        if self.token_drop and self.depth < 3:
            raise ValueError(f"token_drop needs a depth of at least 3, got {self.depth}")
        if self.early_output is not None:
            first = self.all_token_blocks if self.token_drop else 1
            last = self.depth - first
            if not first <= self.early_output <= last:
                raise ValueError(f"early_output must be from {first} to {last}, got {self.early_output}")
        return self

    @property
    def all_token_blocks(self) -> int:
        """Number of blocks at each end that see all tokens in spite of `token_drop`."""
        return max(1, self.depth // 8)


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
    hidden_layers = ("blocks",)  # for the optimizer muon

    def __init__(self, cfg: DitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels, self.downscale, self.takes_pose = cfg.in_channels, cfg.patch, cfg.pose
        self.has_early_output = cfg.early_output is not None
        width = cfg.width
        self.enter = nn.Linear(cfg.in_channels * cfg.patch**2, width)
        self.time_emb = TimeEmbedding(_TIME_CHANNELS, width)
        self.context_emb = nn.Linear(cfg.context_size, cfg.context_width)
        self.empty_context = nn.Parameter(torch.zeros(cfg.context_width))
        self.from_context = nn.Linear(cfg.context_width, width)
        if cfg.context_tokens:
            self.to_tokens = nn.Linear(cfg.context_width, cfg.context_tokens * width)
        if cfg.pose:
            self.pose_emb = PoseEmbedding(width)
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            Block(width, cfg.heads, cfg.mlp_ratio, cfg.dropout, cfg.context_tokens > 0) for _ in range(cfg.depth)
        )
        self.last_table = nn.Parameter(torch.zeros(2, width))
        self.leave = nn.Linear(width, cfg.in_channels * cfg.patch**2)
        if cfg.early_output is not None:
            self.early_table = nn.Parameter(torch.zeros(2, width))
            self.early_leave = nn.Linear(width, cfg.in_channels * cfg.patch**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
        if cfg.early_output is not None:
            nn.init.zeros_(self.early_leave.weight)
        if cfg.pose:
            self.pose_emb.reset()

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | EncodedContext | None = None,
        drop_context: Tensor | None = None, component_mask: Tensor | None = None, with_early: bool = False,
    ) -> Tensor:
        """Return the prediction, (B, C, H, W); with the early one, (2, B, C, H, W), the early one last.

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, unscaled.
            context: (B, context_size) face embeddings of unit length, with `pose` also (B, context_size + 1) with the
                yaw in degrees; None for the empty context, which is learned; or the result of `encode_context`,
                without the other arguments.
            drop_context: (B,) bool; True replaces the context of this sample by the empty one.
            component_mask: (B, E) bool, the components that CPD keeps (Boutros et al. 2023, arXiv:2308.04995), in
                training or not; they are scaled by 1 / (1 - component_dropout). None: drawn in training from torch's
                global generator, off in eval mode.
            with_early: Also return the early prediction, which a network with `early_output` has.

        Raises:
            ValueError: The latents do not fit the network, their number is not that of the contexts, or the network has
                no early prediction.
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
        if with_early and not self.has_early_output:
            raise ValueError("this network has no early prediction: early_output is None")
        rows, columns = height // self.downscale, width // self.downscale
        h = self.enter(patchify(x, self.downscale))                                # (B, L, N)
        h = h + positions(rows, columns, self.cfg.width, x.device, self.cfg.position_step).to(h.dtype)
        condition = F.silu(self.time_emb(t) + context.signal)                      # (B, N)
        modulation = self.modulate(condition).unflatten(1, (6, -1))                # (B, 6, N)
        blocks = list(zip(self.blocks, context.keys.unbind(1), context.values.unbind(1), strict=True))
        early_at = (self.cfg.early_output or 0) if with_early else 0
        if self.training and self.cfg.token_drop:
            edge = self.cfg.all_token_blocks
            h, _ = _through(blocks[:edge], h, modulation)
            kept = keep_tokens(h, self.cfg.token_drop)
            middle, early = _through(blocks[edge:-edge], h.gather(1, kept), modulation, early_at - edge)
            early = h.scatter(1, kept, early)
            h, _ = _through(blocks[-edge:], h.scatter(1, kept, middle), modulation)
        else:
            h, early = _through(blocks, h, modulation, early_at)

        def latents(tokens: Tensor, table: Tensor, leave: nn.Module) -> Tensor:
            shift, scale = (condition[:, None] + table).split(1, dim=1)            # 2 x (B, 1, N)
            return unpatchify(leave(modulated(tokens, shift, scale)), rows, columns, self.downscale)

        output = latents(h, self.last_table, self.leave)
        return torch.stack([output, latents(early, self.early_table, self.early_leave)]) if with_early else output

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
        yaw = None
        if context is not None:
            context, yaw = split_pose(context, self.cfg.context_size, self.takes_pose)
        c = self._project(context, drop_context, component_mask, batch)
        signal = self.from_context(c) if yaw is None else self.from_context(c) + self.pose_emb(yaw)
        if self.cfg.context_tokens:
            tokens = normed(self.to_tokens(c).unflatten(1, (self.cfg.context_tokens, -1)))       # (B, S, N)
        else:
            tokens = c.new_zeros(batch, 0, self.cfg.width)
        pairs = [block.attention.read(tokens) for block in self.blocks]
        return EncodedContext(signal, *(torch.stack(part, 1) for part in zip(*pairs, strict=True)))

    def weights_of(self, other: DiffusionTransformer) -> dict[str, Tensor]:
        """Return the weights of another network of this kind for this one, whose patches may be smaller.

        A small patch gets the token of a large one that repeats it, and returns the mean of what a large one returned;
        tokens keep the positions that they had within the large patch.

        Raises:
            ValueError: The patches do not divide, or `position_step` is not that of the other network times theirs.
        """
        state, times = other.state_dict(), other.cfg.patch / self.cfg.patch
        step = other.cfg.position_step / times
        if times != int(times) or not math.isclose(self.cfg.position_step, step, rel_tol=1e-3):
            needed = f" with position_step {step:g}" if times == int(times) else " whose patch it divides"
            raise ValueError(f"its patch is {other.cfg.patch}; a patch of {self.cfg.patch} with position_step "
                             f"{self.cfg.position_step:g} cannot begin with it, only one{needed}")
        if times > 1 and other.in_channels == self.in_channels:
            parts = (self.in_channels, int(times), self.cfg.patch, int(times), self.cfg.patch)
            enter = state["enter.weight"].unflatten(1, parts).sum((2, 4)).flatten(1)              # (N, C p^2)
            leaves = [key for key in state if key.startswith(("leave.", "early_leave."))]
            state |= {key: state[key].unflatten(0, parts).mean((1, 3)).flatten(0, 2) for key in leaves}
            state["enter.weight"] = enter
        return state

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


def keep_tokens(h: Tensor, drop: float) -> Tensor:
    """Return the numbers of randomly chosen tokens of each image, as an index for `gather`, (B, kept, N).

    Args:
        h: (B, L, N) tokens.
        drop: Share of the tokens that are not chosen; at least one is.
    """
    batch, count, width = h.shape
    kept = max(1, round((1 - drop) * count))
    chosen = torch.rand(batch, count, device=h.device).argsort(dim=1)[:, :kept]
    return chosen[:, :, None].expand(-1, -1, width)


def _through(
    blocks: list[tuple[nn.Module, Tensor, Tensor]], h: Tensor, modulation: Tensor, early_at: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, L, N) after all blocks, and after the first `early_at` of them."""
    early = h
    for number, (block, keys, values) in enumerate(blocks, start=1):
        h = block(h, modulation, keys, values)
        if number == early_at:
            early = h
    return h, early
