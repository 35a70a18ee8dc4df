"""What builders of the plugin kinds `backbone`, `denoiser` and `autoencoder` return: `nn.Module`s with these members.

They subclass `torch.nn.Module`, not these protocols, which only say what the rest of facesyn asks of them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """A face recognizer; an `nn.Module`.

    Attributes:
        embedding_size: D, numbers of an embedding.
        input_size: S, side of the images it takes.
    """

    embedding_size: int
    input_size: int

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D), not normalized, of pixels (B, 3, S, S), RGB in [-1, 1].

        A network that expects BGR or another range turns the pixels round itself.
        """


class Denoiser(Protocol):
    """Predicts noise, velocity or latent; an `nn.Module`.

    Settings called `context_size` and attributes `in_channels` (of the latent) and `downscale` (what the side of the
    latent must be divisible by) are checked against the data where they are there. Where it has
    `encode_context(context)`, samplers call that once a batch and give `forward` what it returned.

    Attributes:
        is_conditional: Whether it takes contexts; a module without it does.
    """

    is_conditional: bool

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        drop_context: Tensor | None = None,
        component_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, C, H, W).

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, integers in training; samplers of continuous time give fractions.
            context: (B, E) face embeddings of unit length; None for the empty context.
            drop_context: (B,) bool, True trains this sample under the empty context; None: none of them.
            component_mask: (B, W) bool, components of the projected context that are kept; None unless the plugin has
                a setting `component_dropout`.
        """


class Autoencoder(Protocol):
    """Pixels to latents and back; an `nn.Module`.

    One of another package brings its own weights, named by its settings: files given by `--autoencoder` are those of
    the built-in ones.

    Attributes:
        latent_channels: C of the latents.
        downscale: f, side of an image over that of its latents.
    """

    latent_channels: int
    downscale: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (B, C, S / f, S / f) of pixels (B, 3, S, S), RGB in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about in [-1, 1], of latents (B, C, S / f, S / f)."""
