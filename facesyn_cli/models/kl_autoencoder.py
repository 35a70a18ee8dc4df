"""KL autoencoders of CompVis latent-diffusion, `kl-f4` and `kl-f8`, with the published parameter names.

Rombach et al. 2022, arXiv:2112.10752, section 3.1: encoder and decoder of the VQ models, but the encoder predicts mean
and log variance of a normal distribution (twice the channels), and there is no codebook. `encode` returns the mean. The
factor of diffusion models (`scale_factor`) is not applied; latents are normalized with statistics of the training set.

Checked against `AutoencoderKL` of diffusers and its reader of these files (tests/parity).
"""

from __future__ import annotations

from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.models.vq_f4 import CompvisAutoencoder, CompvisConfig
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
class KlAutoencoder(CompvisAutoencoder):
    """Pixels to the mean of their latents, and back; with random weights."""

    def __init__(self, cfg: KlF8Config) -> None:
        super().__init__(cfg, cfg.inner_channels, moments=2)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean of the latents; see `CompvisAutoencoder.encode`."""
        return super().encode(pixels).chunk(2, dim=1)[0]  # mean, log variance


@register(
    "autoencoder", "kl-f4",
    Card(about="KL autoencoder of latent diffusion: 3 x S/4 x S/4 latents",
         paper="Rombach et al. 2022, arXiv:2112.10752", input="RGB in [-1, 1], side divisible by 4",
         license="see the weights' own card"),
)
def build_kl_f4(cfg: KlF4Config) -> KlAutoencoder:
    """Build the autoencoder, or one half of it, with random weights."""
    return KlAutoencoder(cfg)
