"""Autoencoders for small faces, `face-kl` and `face-vq`, with networks of diffusers' `AutoencoderKL` and `VQModel`.

The image is first rearranged into blocks of `patch` x `patch` pixels as channels (Shi et al. 2016, arXiv:1609.05158,
section 3.2, inverted for the encoder), so that no wide layer runs at full resolution; `patch` 1 is the plain network. A
small convolution at full resolution (`smooth`), initialized to zero, removes the seams between blocks after the
decoder.

face-kl: the encoder predicts mean and log variance of a normal distribution (Kingma and Welling 2014,
arXiv:1312.6114, Eq. 10; Rombach et al. 2022, arXiv:2112.10752, section 3.1); `encode` returns the mean.
face-vq: `decode` quantizes the latent (van den Oord et al. 2017, arXiv:1711.00937, Eq. 1-3); `encode` returns it
unquantized.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.decoder_maps import diffusers_upsamplers, inputs_of
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_LOG_VARIANCE = (-30.0, 20.0)  # as in the published code: its exponential stays finite
_INPUT = "RGB in [-1, 1], side divisible by patch * 2^(levels - 1)"


class FaceKlConfig(PluginConfig):
    """Settings of `face-kl`; with the defaults, latents of 112 x 112 pixels are 8 x 14 x 14."""

    patch: int = affects_result(4, "side of the blocks of pixels that become channels, a power of two; 1: none", ge=1)
    channels: tuple[int, ...] = affects_result(
        (64, 128), "width of each level; every level but the last halves the side"
    )
    layers_per_block: int = affects_result(1, "residual blocks per level; the decoder has one more", ge=1)
    latent_channels: int = affects_result(8, "channels of a latent", ge=1)
    num_groups: int = affects_result(16, "groups of GroupNorm; must divide every width", ge=1)
    attention: bool = affects_result(False, "self-attention at the lowest resolution")
    smooth: int = affects_result(16, "width of the convolutions at full resolution after the decoder; 0: none", ge=0)
    part: Literal["both", "encoder", "decoder"] = affects_result("both", "which half to build")

    @model_validator(mode="after")
    def _agree(self) -> FaceKlConfig:
        if self.patch & (self.patch - 1):
            raise ValueError(f"patch must be a power of two, got {self.patch}")
        if not self.channels or any(width < 1 or width % self.num_groups for width in self.channels):
            raise ValueError(f"channels must be one or more multiples of num_groups={self.num_groups}, "
                             f"got {list(self.channels)}")
        return self


class FaceVqConfig(FaceKlConfig):
    """Settings of `face-vq`."""

    latent_channels: int = affects_result(4, "channels of a latent and of a code", ge=1)
    codebook_size: int = affects_result(1024, "number of codes", ge=2)


class TrainingPass(NamedTuple):
    """The result of a forward pass in training."""

    pixels: Tensor               # (B, 3, S, S) reconstruction
    penalties: dict[str, Tensor]  # (B,) each, float32: further terms of the loss


class FaceAutoencoder(nn.Module):
    """Encoder and decoder of a diffusers autoencoder, which `train-autoencoder` can train.

    Args:
        cfg: Settings.
        parts: The diffusers autoencoder.

    Attributes:
        hidden_layers: See `models/interfaces.py`.

    Shapes: B batch, S image side, c latent channels, s = S / downscale.
    """

    hidden_layers: tuple[str, ...] = ()

    def __init__(self, cfg: FaceKlConfig, parts: nn.Module) -> None:
        super().__init__()
        self.cfg = cfg
        self.latent_channels = cfg.latent_channels
        self.downscale = cfg.patch * 2 ** (len(cfg.channels) - 1)
        if cfg.part != "decoder":
            self.encoder, self.quant_conv = parts.encoder, parts.quant_conv
            self.hidden_layers += ("encoder.down_blocks", "encoder.mid_block")
        if cfg.part != "encoder":
            self.post_quant_conv = parts.post_quant_conv
            self.decoder = _BlockDecoder(parts.decoder, cfg.patch, cfg.smooth)
            self.hidden_layers += ("decoder.network.mid_block", "decoder.network.up_blocks")

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about [-1, 1] and not clamped, of latents (B, c, s, s).

        Raises:
            UserError: Only the encoder is loaded.
        """
        self._check_decoder()
        return self.decoder(self.post_quant_conv(latents))

    def decoder_maps(self, latents: Tensor, count: int) -> list[Tensor]:
        """Return feature maps of the decoder, of latents that are not quantized; see `models/interfaces.py`.

        Raises:
            UserError: Only the encoder is loaded.
        """
        self._check_decoder()
        enlarging = diffusers_upsamplers(self.decoder.network)[:count]
        return inputs_of(enlarging, lambda: self.decoder(self.post_quant_conv(latents)))

    def training_pass(self, pixels: Tensor, noise: Tensor) -> TrainingPass:
        """Return differentiable reconstructions and penalties.

        Args:
            pixels: (B, 3, S, S) in [-1, 1].
            noise: (B, c, s, s) standard normal; not used where latents are not drawn.
        """
        raise NotImplementedError

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the last layer of the decoder."""
        return self.decoder.last_layer()

    def latent_side(self) -> list[nn.Parameter]:
        """Return the parameters that define the latents, those of the encoder: training others keeps latents valid."""
        return [*self.encoder.parameters(), *self.quant_conv.parameters()]

    def _check_decoder(self) -> None:
        if self.cfg.part == "encoder":
            raise UserError(f"{self.cfg.name}: only the encoder was given; decoding latents needs the decoder too")

    def _moments(self, pixels: Tensor) -> Tensor:
        if self.cfg.part == "decoder":
            raise UserError(f"{self.cfg.name}: only the decoder was given; encoding images needs the encoder too")
        return self.quant_conv(self.encoder(F.pixel_unshuffle(pixels, self.cfg.patch)))


@register(
    "autoencoder", "face-kl",
    Card("KL autoencoder for small faces, fast on a CPU; trained by train-autoencoder",
         "Rombach et al. 2022, arXiv:2112.10752; Shi et al. 2016, arXiv:1609.05158", _INPUT),
)
class FaceKl(FaceAutoencoder):
    """Autoencoder whose latent is drawn from a normal distribution in training, and its mean otherwise."""

    def __init__(self, cfg: FaceKlConfig) -> None:
        from diffusers import AutoencoderKL

        super().__init__(cfg, AutoencoderKL(**_settings(cfg)))

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean (B, c, s, s) of the latents of pixels (B, 3, S, S) in [-1, 1]; needs the encoder."""
        return self._moments(pixels).chunk(2, dim=1)[0]

    def training_pass(self, pixels: Tensor, noise: Tensor) -> TrainingPass:
        """Decode latents drawn with `noise`; the penalty is `kl`, see `normal_divergence`."""
        mean, log_variance = self._moments(pixels).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        return TrainingPass(self.decode(latents), {"kl": normal_divergence(mean, log_variance)})


@register(
    "autoencoder", "face-vq",
    Card("Vector-quantized autoencoder for small faces, fast on a CPU; trained by train-autoencoder",
         "van den Oord et al. 2017, arXiv:1711.00937; Rombach et al. 2022, arXiv:2112.10752", _INPUT),
)
class FaceVq(FaceAutoencoder):
    """Autoencoder with a codebook."""

    def __init__(self, cfg: FaceVqConfig) -> None:
        from diffusers import VQModel

        parts = VQModel(**_settings(cfg), num_vq_embeddings=cfg.codebook_size)
        super().__init__(cfg, parts)
        if cfg.part != "encoder":
            self.quantize = parts.quantize

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the unquantized latents (B, c, s, s) of pixels (B, 3, S, S) in [-1, 1]; needs the encoder."""
        return self._moments(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels of the quantized latents, see `FaceAutoencoder.decode`."""
        return super().decode(latents if self.cfg.part == "encoder" else self.nearest(latents).to(latents.dtype))

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the nearest code of every position, (B, c, s, s) float32; differentiable in the codes."""
        with torch.autocast(latents.device.type, enabled=False):
            indices = self.quantize(latents.float())[2][2]
            codes = self.quantize.embedding(indices)                              # (B s s, c)
        batch, channels, height, width = latents.shape
        return codes.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def training_pass(self, pixels: Tensor, noise: Tensor) -> TrainingPass:
        """Decode the quantized latents with straight-through gradients.

        Penalties, means over the elements of a latent (van den Oord et al. 2017, Eq. 3): `codebook` moves the codes
        to the latents, `commitment` the latents to their codes.
        """
        latents = self._moments(pixels).float()
        codes = self.nearest(latents)
        penalties = {
            "codebook": ((codes - latents.detach()) ** 2).mean(dim=(1, 2, 3)),
            "commitment": ((codes.detach() - latents) ** 2).mean(dim=(1, 2, 3)),
        }
        return TrainingPass(super().decode(latents + (codes - latents).detach()), penalties)

    def latent_side(self) -> list[nn.Parameter]:
        """Return the parameters of encoder and codebook."""
        return [*super().latent_side(), *self.quantize.parameters()]


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)), (B,), as the mean over the elements of a latent.

    Kingma and Welling 2014, arXiv:1312.6114, Eq. 10: (mean^2 + variance - 1 - log variance) / 2.
    """
    elements = 0.5 * (mean**2 + torch.exp(log_variance) - 1.0 - log_variance)
    return elements.mean(dim=(1, 2, 3))


class _BlockDecoder(nn.Module):
    """The decoder of diffusers, pixel shuffle, and the convolutions at full resolution."""

    def __init__(self, network: nn.Module, patch: int, smooth: int) -> None:
        super().__init__()
        self.network, self.patch = network, patch
        self.smooth = None
        if smooth:
            last = nn.Conv2d(smooth, 3, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.smooth = nn.Sequential(nn.Conv2d(3, smooth, 3, padding=1), nn.SiLU(), last)

    def forward(self, latents: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(self.network(latents), self.patch)
        return pixels if self.smooth is None else pixels + self.smooth(pixels)

    def last_layer(self) -> nn.Parameter:
        return self.network.conv_out.weight if self.smooth is None else self.smooth[-1].weight


def _settings(cfg: FaceKlConfig) -> dict[str, Any]:
    levels, block = len(cfg.channels), 3 * cfg.patch**2
    return {
        "in_channels": block, "out_channels": block, "block_out_channels": cfg.channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": cfg.layers_per_block, "latent_channels": cfg.latent_channels,
        "norm_num_groups": cfg.num_groups, "mid_block_add_attention": cfg.attention,
    }
