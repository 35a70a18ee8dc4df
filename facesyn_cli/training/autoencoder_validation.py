"""How good reconstructions are: held-out images in figures, and a few of them side by side to look at."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.files import write_bytes
from facesyn_cli.data.pixels import encode_png, to_pixels, to_u8
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.training.feature_distance import FeatureDistance
from facesyn_cli.training.previews import grid

_PEAK = 255.0  # of uint8 pixels


class ReconstructionValidation:
    """Held-out images of this process.

    Args:
        pixels_u8: (n, S, S, 3) uint8, this process's share.
        judge: Recogniser in whose eyes identity is compared; None: it is not.
        batch_size: Images per forward pass.
        device: Where the network lies.
    """

    def __init__(
        self, pixels_u8: Tensor, judge: FeatureDistance | None, batch_size: int, device: torch.device
    ) -> None:
        self.pixels_u8, self.judge, self.batch_size, self.device = pixels_u8, judge, batch_size, device

    @torch.no_grad()
    def sums(self, autoencoder: nn.Module, autocast: AbstractContextManager) -> Tensor:
        """Return [sum of PSNR in dB, sum of identity cosines, number of images], float64, on the device.

        Args:
            autoencoder: In eval mode.
            autocast: Number format in which the autoencoder runs; the judge runs in float32.
        """
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in fixed_batches(len(self.pixels_u8), self.batch_size):
            real_u8 = self.pixels_u8[batch.start : batch.stop].to(self.device)
            with autocast:
                made_u8 = to_u8(_reconstruct(autoencoder, to_pixels(real_u8)))
            total[0] += psnr(made_u8, real_u8).sum()
            if self.judge is not None:
                total[1] += (1.0 - self.judge(to_pixels(made_u8), to_pixels(real_u8))[1]).double().sum()
            total[2] += len(real_u8)
        return total


def psnr(made_u8: Tensor, real_u8: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,) float64, of (B, H, W, 3) uint8: 10 log10(255^2 / MSE).

    Equal images give that of a mean squared error of 1/12, what rounding to whole numbers alone may cost.
    """
    error = ((made_u8.double() - real_u8.double()) ** 2).flatten(1).mean(dim=1)
    return 10.0 * torch.log10(_PEAK**2 / error.clamp(min=1 / 12))


@torch.no_grad()
def write_reconstructions(path: Path, autoencoder: nn.Module, pixels_u8: Tensor, device: torch.device) -> None:
    """Write a PNG: a row of originals over the row of their reconstructions.

    Args:
        path: The file.
        autoencoder: In eval mode.
        pixels_u8: (n, S, S, 3) uint8.
        device: Where the network lies.
    """
    made_u8 = to_u8(_reconstruct(autoencoder, to_pixels(pixels_u8).to(device))).cpu()
    write_bytes(path, encode_png(grid(torch.stack([pixels_u8, made_u8]).numpy())))


def _reconstruct(autoencoder: nn.Module, pixels: Tensor) -> Tensor:
    return autoencoder.decode(autoencoder.encode(pixels)).float()
