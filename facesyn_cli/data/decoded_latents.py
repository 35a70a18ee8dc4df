"""From latents to finished images, as published: statistics, decoder, clamp, resize, 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.data.pixels import resize_pixels, to_u8


class LatentDecoder:
    """Turns the latents of a sampler into images; nothing leaves the device on the way.

    Args:
        autoencoder: Its `decode` maps latents (B, c, h, w) to pixels (B, 3, S, S).
        settings: Of the LDM whose latents they are: their statistics per channel.
        size: Side of a finished image in pixels.
        device: Where autoencoder and latents are.
    """

    def __init__(self, autoencoder: nn.Module, settings: LdmSettings, size: int, device: torch.device) -> None:
        self.autoencoder = autoencoder
        self.size = size
        self._mean = torch.tensor(settings.latent_mean or [0.0], device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(settings.latent_std or [1.0], device=device).view(1, -1, 1, 1)

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and whether they are sound.

        Args:
            latents: (B, c, h, w) float32 as the denoiser makes them.

        Returns:
            (B, size, size, 3) uint8 images, and (B,) bool: all numbers of the image were finite.
        """
        pixels = self.autoencoder.decode(latents * self._std + self._mean)
        is_finite = pixels.isfinite().flatten(1).all(dim=1)
        return finish_pixels(pixels.nan_to_num(), self.size), is_finite


def finish_pixels(pixels: Tensor, size: int) -> Tensor:
    """Return finished images (B, size, size, 3) uint8 from decoded pixels (B, 3, H, W), as published.

    Clamp to [-1, 1], then resize bilinearly without antialiasing, then round to 8 bits.
    """
    return to_u8(resize_pixels(pixels.float().clamp(-1, 1), size, antialias=False))
