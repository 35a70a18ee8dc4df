"""KL autoencoders of CompVis' latent-diffusion, `kl-f4` and `kl-f8`, with their published names.

Rombach et al. 2022, arXiv:2112.10752, section 3.1: encoder and decoder are those of the VQ models, but the
encoder gives mean and log variance of a normal distribution (twice the channels), and there is no codebook.
The latent is the mean: `encode` is deterministic. The factor that a diffusion model applies to its latents
(`scale_factor`) is not applied; latents are normalized with statistics of the training set.

The references of this project describe the VQ models only. That the KL models are built like this was checked
against diffusers' `AutoencoderKL` and its own reader of these files (tests/parity).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.vq_f4 import NORM_GROUPS, Decoder, Encoder
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class KlF8Config(PluginConfig):
    """Settings of `kl-f8`; the defaults are those under Stable Diffusion 1."""

    channels: int = affects_result(128, "width of the first level", ge=NORM_GROUPS, multiple_of=NORM_GROUPS)
    multipliers: tuple[int, ...] = affects_result((1, 2, 4, 4), "width of each level over the first")
    num_blocks: int = affects_result(2, "residual blocks per level; the decoder has one more", ge=1)
    inner_channels: int = affects_result(4, "channels between encoder and decoder and their 1 x 1 convolutions", ge=1)
    latent_channels: int = affects_result(4, "channels of a latent", ge=1)
    part: Literal["both", "encoder", "decoder"] = affects_result("both", "which half to build")

    @model_validator(mode="after")
    def _agree(self) -> KlF8Config:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one or more numbers of at least 1, got {list(self.multipliers)}")
        return self


class KlF4Config(KlF8Config):
    """Settings of `kl-f4`."""

    multipliers: tuple[int, ...] = affects_result((1, 2, 4), "width of each level over the first")
    inner_channels: int = affects_result(3, "channels between encoder and decoder and their 1 x 1 convolutions", ge=1)
    latent_channels: int = affects_result(3, "channels of a latent", ge=1)


@register(
    "autoencoder",
    "kl-f8",
    Card(
        about="KL autoencoder of latent diffusion and Stable Diffusion 1: 4 x S/8 x S/8 latents",
        paper="Rombach et al. 2022, arXiv:2112.10752",
        input="RGB in [-1, 1], side divisible by 8",
        license="see the weights' own card",
    ),
)
def build_kl_f8(cfg: KlF8Config) -> nn.Module:
    """Build the autoencoder, or one half of it, with random weights."""
    return KlAutoencoder(cfg)


@register(
    "autoencoder",
    "kl-f4",
    Card(
        about="KL autoencoder of latent diffusion: 3 x S/4 x S/4 latents",
        paper="Rombach et al. 2022, arXiv:2112.10752",
        input="RGB in [-1, 1], side divisible by 4",
        license="see the weights' own card",
    ),
)
def build_kl_f4(cfg: KlF4Config) -> nn.Module:
    """Build the autoencoder, or one half of it, with random weights."""
    return KlAutoencoder(cfg)


class KlAutoencoder(nn.Module):
    """Pixels to the mean of their latents, and back.

    Shapes: B batch, S image side, c latent channels, s = S / downscale.
    """

    def __init__(self, cfg: KlF8Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.latent_channels = cfg.latent_channels
        self.downscale = 2 ** (len(cfg.multipliers) - 1)
        widths = [cfg.channels * m for m in cfg.multipliers]
        if cfg.part != "decoder":
            self.encoder = Encoder(widths, cfg.num_blocks, 2 * cfg.inner_channels)
            self.quant_conv = nn.Conv2d(2 * cfg.inner_channels, 2 * cfg.latent_channels, 1)
        if cfg.part != "encoder":
            self.decoder = Decoder(widths, cfg.num_blocks, cfg.inner_channels)
            self.post_quant_conv = nn.Conv2d(cfg.latent_channels, cfg.inner_channels, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean of the latents (B, c, s, s) of pixels (B, 3, S, S) in [-1, 1].

        Raises:
            UserError: Only the decoder was loaded.
        """
        if self.cfg.part == "decoder":
            raise UserError(f"{self.cfg.name}: only the decoder was given; encoding images needs the encoder too")
        return self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0]            # mean, log variance

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about [-1, 1] and not clamped, of latents (B, c, s, s).

        Raises:
            UserError: Only the encoder was loaded.
        """
        if self.cfg.part == "encoder":
            raise UserError(f"{self.cfg.name}: only the encoder was given; decoding latents needs the decoder too")
        return self.decoder(self.post_quant_conv(latents))
