"""Interfaces of the modules that builders of the plugin kinds `backbone`, `denoiser` and `autoencoder` return.

Implementations subclass `torch.nn.Module`, not these protocols.

A network that is trained with `optimizer.name=muon` has an attribute `hidden_layers`: the names of the submodules, as
of `get_submodule`, whose linear layers and convolutions Muon updates. All other parameters, such as embeddings and
first and last layers, are left to AdamW. A layer whose output is several vectors side by side, such as queries, keys
and values, gives their number in an attribute `fused_matrices`; each of these matrices is orthogonalized separately.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

Reads = Literal["photos", "latents"]


class Backbone(Protocol):
    """A face recognizer; an `nn.Module`.

    One that reads latents has attributes `reads = "latents"` and `in_channels`, and a method `normalize_by(mean, std)`
    that takes the (in_channels,) statistics of the latents; its `input_size` is the side of the latents. Only
    `train-identity` and `train-ldm` take it.

    Attributes:
        embedding_size: D, length of an embedding.
        input_size: S, side of the input images.
    """

    embedding_size: int
    input_size: int

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D), not normalized, of pixels (B, 3, S, S), RGB in [-1, 1].

        A network that expects BGR or another range converts the pixels itself.
        """


def what_it_reads(backbone: nn.Module) -> Reads:
    """Return what a recognizer takes: photos, as nearly all do, or latents."""
    return getattr(backbone, "reads", "photos")


class Denoiser(Protocol):
    """Predicts noise, latent or a velocity; an `nn.Module`.

    The setting `context_size` and the attributes `in_channels` (of the latent) and `downscale` (divisor of the side of
    the latent), if present, are checked against the data. If there is a method `encode_context(context)`, samplers call
    it once per batch and pass its result to `forward`.

    A denoiser with an early prediction, for the guidance `internal`, has an attribute `has_early_output = True` and
    takes `with_early=True` in `forward`: it then returns (2, B, C, H, W), the early one last.

    Attributes:
        is_conditional: Whether it takes contexts; True if absent.
    """

    is_conditional: bool

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, drop_context: Tensor | None = None,
        component_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, C, H, W).

        Args:
            x: (B, C, H, W) noisy latents.
            t: (B,) timesteps, int64 in [0, T); solvers of continuous time give float32. Under prediction `flow` it is
                1000 t, float32, with t from 0 (latents) to 1 (noise), in training and sampling.
            context: (B, E) face embeddings of unit length; None for the empty context.
            drop_context: (B,) bool, True trains this sample under the empty context; None: no sample.
            component_mask: (B, W) bool, components of the projected context to keep; None unless the plugin has a
                setting `component_dropout`.
        """


class Autoencoder(Protocol):
    """Pixels to latents and back; an `nn.Module`.

    One with a method `decoder_maps(latents, count)` can be trained with the perceptual loss of `train-ldm`. It returns
    the first `count` feature maps of the decoder, (B, C_k, H_k, W_k), each the last one of its resolution, from coarse
    to fine, and fewer where there are fewer; differentiable, so latents are not quantized.

    Third-party autoencoders load their own weights, given by their settings; `--autoencoder` accepts files of the
    built-in ones.

    Attributes:
        latent_channels: C of the latents.
        downscale: f, side of an image relative to that of its latents.
    """

    latent_channels: int
    downscale: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents (B, C, S / f, S / f) of pixels (B, 3, S, S), RGB in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), approximately in [-1, 1], of latents (B, C, S / f, S / f)."""
