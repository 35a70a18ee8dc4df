"""The denoiser `residual-mlp`, for latents that are one vector, such as those of `face-pca`.

Residual multilayer perceptrons, modulated by timestep and context (adaptive LayerNorm, initialized to the identity:
Peebles and Xie 2023, arXiv:2212.09748, section 3.2), as used for single tokens by Li et al. 2024, "Autoregressive Image
Generation without Vector Quantization", arXiv:2406.11838, section 4.2. A narrow layer before the modulation saves most
of its parameters. Every weight is used once per image, so an evaluation costs millions of operations instead of
billions for a UNet on a grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.idiff_blocks import TimeEmbedding
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_TIME_CHANNELS = 128


class ResidualMlpConfig(PluginConfig):
    """Settings of `residual-mlp`."""

    in_channels: int = affects_result(320, "channels of the latent", ge=1)
    grid: int = affects_result(1, "side of the latent grid, which is flattened to one vector", ge=1)
    width: int = affects_result(512, "width of the residual stream", ge=8)
    blocks: int = affects_result(6, "residual blocks", ge=1)
    expansion: float = affects_result(2.0, "hidden width of a block, relative to `width`", gt=0)
    modulation: int = affects_result(128, "width of the shared layer before the modulation", ge=1)
    dropout: float = affects_result(0.0, "dropout in the hidden layer of every block, in training", ge=0, lt=1)
    context_size: int = affects_result(512, "size of the face embedding", ge=1)
    context_width: int = affects_result(256, "size of the projected context", ge=1)
    component_dropout: float = affects_result(
        0.25, "CPD: probability of dropping a component of the projected context in training", ge=0, lt=1
    )


@register(
    "denoiser", "residual-mlp",
    Card(about="Residual MLP for latents that are one vector; the defaults have 8.6 M parameters",
         paper="Li et al. 2024, arXiv:2406.11838, section 4.2; Peebles and Xie 2023, arXiv:2212.09748",
         input="latents (in_channels, grid, grid), timesteps 0..999, face embedding of unit length"),
)
def build_residual_mlp(cfg: ResidualMlpConfig) -> nn.Module:
    """Build the network with random weights."""
    return ResidualMlp(cfg)


class ResidualMlp(nn.Module):
    """Predict noise, velocity or latent from a noisy latent, its timestep and a face embedding.

    Args:
        cfg: Settings.

    Shapes: B batch, C latent channels, H = W = grid, E context width.
    """

    is_conditional = True
    hidden_layers = ("blocks",)

    def __init__(self, cfg: ResidualMlpConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels = cfg.in_channels
        size, width = cfg.in_channels * cfg.grid**2, cfg.width
        self.enter = nn.Linear(size, width)
        self.time_emb = TimeEmbedding(_TIME_CHANNELS, width)
        self.context_emb = nn.Linear(cfg.context_size, cfg.context_width)
        self.empty_context = nn.Parameter(torch.zeros(cfg.context_width))
        self.from_context = nn.Linear(cfg.context_width, width)
        self.condition = nn.Linear(width, cfg.modulation)
        self.blocks = nn.ModuleList(_Block(cfg) for _ in range(cfg.blocks))
        self.modulate = _zeroed(nn.Linear(cfg.modulation, 2 * width))
        self.leave = _zeroed(nn.Linear(width, size))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        drop_context: Tensor | None = None,
        component_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction, (B, C, H, W).

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, unscaled.
            context: (B, context_size) face embeddings of unit length; None for the empty context, which is learned.
            drop_context: (B,) bool; True replaces this sample's context by the empty one.
            component_mask: (B, E) bool, the components that CPD keeps (Boutros et al. 2023, arXiv:2308.04995), in
                training or not; they are scaled by 1 / (1 - component_dropout). None: drawn in training from torch's
                global generator, off in eval.

        Raises:
            ValueError: The latents do not fit the network.
        """
        if x.shape[1:] != (self.cfg.in_channels, self.cfg.grid, self.cfg.grid):
            raise ValueError(f"expected latents (B, {self.cfg.in_channels}, {self.cfg.grid}, {self.cfg.grid}), "
                             f"got {tuple(x.shape)}")
        from_context = self.from_context(self._project(context, drop_context, component_mask, len(x)))
        condition = F.silu(self.condition(F.silu(self.time_emb(t) + from_context)))
        h = self.enter(x.flatten(1)) + from_context
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulate(condition).chunk(2, dim=1)
        return self.leave(_normed(h) * (1 + scale) + shift).view(x.shape)

    def _project(
        self, context: Tensor | None, drop_context: Tensor | None, component_mask: Tensor | None, batch: int
    ) -> Tensor:
        """Return the encoded context for all blocks, (batch, E)."""
        c = self.empty_context.expand(batch, -1)
        if context is not None:
            seen = self.context_emb(context * self.cfg.context_size**0.5)  # components of about 1
            c = seen if drop_context is None else torch.where(drop_context[:, None], c.to(seen.dtype), seen)
        p = self.cfg.component_dropout
        if component_mask is not None:
            return c * component_mask.to(c.dtype) / (1 - p)
        return F.dropout(c, p, training=self.training)


class _Block(nn.Module):
    def __init__(self, cfg: ResidualMlpConfig) -> None:
        super().__init__()
        hidden = round(cfg.expansion * cfg.width)
        self.modulate = _zeroed(nn.Linear(cfg.modulation, 3 * cfg.width))
        self.modulate.fused_matrices = 3  # shift, scale and gate
        self.up = nn.Linear(cfg.width, hidden)
        self.dropout = nn.Dropout(cfg.dropout)
        self.down = nn.Linear(hidden, cfg.width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(condition).chunk(3, dim=1)
        hidden = F.silu(self.up(_normed(h) * (1 + scale) + shift))
        return h + gate * self.down(self.dropout(hidden))


def _normed(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:])


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
