"""KL autoencoders of CompVis latent-diffusion, `kl-f4` and `kl-f8`, with the published parameter names.

Rombach et al. 2022, arXiv:2112.10752, section 3.1: encoder and decoder of the VQ models, but the encoder predicts mean
and log variance of a normal distribution (twice the channels), and there is no codebook. `encode` returns the mean. The
factor of diffusion models (`scale_factor`) is not applied; latents are normalized with statistics of the training set.

Checked against `AutoencoderKL` of diffusers and its reader of these files (tests/parity).
"""

from __future__ import annotations

from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.vq_f4 import CompvisConfig, Decoder, Encoder
from facesyn_cli.plugins.registry import Card, register


class KlF8Config(CompvisConfig):
    """Settings of `kl-f8`; the defaults are those of Stable Diffusion 1."""

    multipliers: tuple[int, ...] = affects_result((1, 2, 4, 4), "width of each level, relative to the first")
    inner_channels: int = affects_result(4, "channels between encoder and decoder and their 1 x 1 convolutions", ge=1)
    latent_channels: int = affects_result(4, "channels of a latent", ge=1)


class KlF4Config(KlF8Config):
    """Settings of `kl-f4`."""

    multipliers: tuple[int, ...] = affects_result((1, 2, 4), "width of each level, relative to the first")
    inner_channels: int = affects_result(3, "channels between encoder and decoder and their 1 x 1 convolutions", ge=1)
    latent_channels: int = affects_result(3, "channels of a latent", ge=1)


@register(
    "autoencoder", "kl-f8",
    Card(about="KL autoencoder of latent diffusion and Stable Diffusion 1: 4 x S/8 x S/8 latents",
         paper="Rombach et al. 2022, arXiv:2112.10752", input="RGB in [-1, 1], side divisible by 8",
         license="see the weights' own card"),
)
def build_kl_f8(cfg: KlF8Config) -> nn.Module:
    """Build the autoencoder, or one half of it, with random weights."""
    return KlAutoencoder(cfg)


@register(
    "autoencoder", "kl-f4",
    Card(about="KL autoencoder of latent diffusion: 3 x S/4 x S/4 latents",
         paper="Rombach et al. 2022, arXiv:2112.10752", input="RGB in [-1, 1], side divisible by 4",
         license="see the weights' own card"),
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
            UserError: Only the decoder is loaded.
        """
        if self.cfg.part == "decoder":
            raise UserError(f"{self.cfg.name}: only the decoder was given; encoding images needs the encoder too")
        return self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0]            # mean, log variance

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, S, S), about [-1, 1] and not clamped, of latents (B, c, s, s).

        Raises:
            UserError: Only the encoder is loaded.
        """
        if self.cfg.part == "encoder":
            raise UserError(f"{self.cfg.name}: only the encoder was given; decoding latents needs the decoder too")
        return self.decoder(self.post_quant_conv(latents))
