"""Validation of reconstructions: metrics on held-out images, and previews beside the originals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.data.picture_grid import picture_grid
from facesyn_cli.data.pixels import encode_png, to_pixels, to_u8
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.distributed import Processes
from facesyn_cli.progress import progress
from facesyn_cli.training.data_order import validation_places
from facesyn_cli.training.tasks.feature_distance import FeatureDistance

Coder = Callable[[Tensor], Tensor]

_PEAK = 255.0  # of uint8 pixels


class ReconstructionValidation:
    """Held-out images of this process.

    Args:
        pixels_u8: (n, S, S, 3) uint8, all held-out images.
        judge: Recognizer that compares identities; None: none does.
        batch_size: Images per forward pass.
        processes: Those that share the images.
    """

    def __init__(
        self, pixels_u8: Tensor, judge: FeatureDistance | None, batch_size: int, processes: Processes
    ) -> None:
        self.judge, self.processes = judge, processes
        self.batch_size = max(1, min(batch_size, -(-len(pixels_u8) // processes.world_size)))
        self.pixels_u8 = pixels_u8[
            validation_places(len(pixels_u8), self.batch_size, processes.rank, processes.world_size)
        ]

    @torch.no_grad()
    def figures(self, encode: Coder, decode: Coder, autocast: AbstractContextManager) -> dict[str, float]:
        """Return `val_psnr`, the mean PSNR in dB, and with a judge `val_cosine`; a collective.

        Args:
            encode: Pixels -> latents.
            decode: Latents -> pixels.
            autocast: Number format of both; the judge runs in float32.
        """
        device = self.processes.device
        total = torch.zeros(3, dtype=torch.float64, device=device)
        with progress("validate", len(self.pixels_u8)) as bar:
            for batch in fixed_batches(len(self.pixels_u8), self.batch_size):
                real_u8 = self.pixels_u8[batch.start : batch.stop].to(device)
                with autocast:
                    made_u8 = to_u8(decode(encode(to_pixels(real_u8))))
                total[0] += psnr(made_u8, real_u8).sum()
                if self.judge is not None:
                    total[1] += (1.0 - self.judge(to_pixels(made_u8), to_pixels(real_u8))["identity"]).double().sum()
                total[2] += len(real_u8)
                bar.advance(len(batch))
        psnr_sum, cosine_sum, count = self.processes.sum(total).tolist()
        figures = {"val_psnr": psnr_sum / count}
        return figures if self.judge is None else {**figures, "val_cosine": cosine_sum / count}


def psnr(made_u8: Tensor, real_u8: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,) float64, of (B, H, W, 3) uint8: 10 log10(255^2 / MSE).

    Equal images have the PSNR of a mean squared error of 1/12, that of rounding to integers.
    """
    error = ((made_u8.double() - real_u8.double()) ** 2).flatten(1).mean(dim=1)
    return 10.0 * torch.log10(_PEAK**2 / error.clamp(min=1 / 12))


@torch.no_grad()
def write_reconstructions(
    path: Path, encode: Coder, decode: Coder, pixels_u8: Tensor, device: torch.device
) -> None:
    """Write a PNG: a row of originals, (n, S, S, 3) uint8, over the row of their reconstructions."""
    made_u8 = to_u8(decode(encode(to_pixels(pixels_u8).to(device)))).cpu()
    pictures = torch.stack([pixels_u8, made_u8]).numpy()
    write_bytes(path, encode_png(picture_grid(pictures, pictures.shape[2])))
