"""An autoencoder without weights: the latent is the downscaled image.

For demonstrations and tests without a trained autoencoder. Encoding averages blocks of pixels; decoding interpolates.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class PixelConfig(PluginConfig):
    """Settings of `pixels`."""

    downscale: int = affects_result(4, "image side over latent side", ge=1)


@register(
    "autoencoder", "pixels",
    Card(about="No network: the latent is the image averaged over blocks",
         input="RGB in [-1, 1], side divisible by downscale"),
)
class PixelAutoencoder(nn.Module):
    """Average pooling over blocks of pixels, and bilinear interpolation back.

    Shapes: pixels (B, 3, S, S) with S divisible by f <-> latents (B, 3, S/f, S/f), both in [-1, 1]; f: `downscale`.
    """

    latent_channels = 3

    def __init__(self, cfg: PixelConfig) -> None:
        super().__init__()
        self.downscale = cfg.downscale

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean of every block.

        Raises:
            ValueError: A side is not divisible by the block.
        """
        if pixels.shape[-2] % self.downscale or pixels.shape[-1] % self.downscale:
            raise ValueError(f"image sides {tuple(pixels.shape[-2:])} must be divisible by {self.downscale}")
        return F.avg_pool2d(pixels, self.downscale)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents enlarged with bilinear interpolation."""
        return F.interpolate(latents, scale_factor=self.downscale, mode="bilinear", align_corners=False)
