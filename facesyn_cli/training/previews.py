"""Pictures to look at while training: what the model makes of a few training contexts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.files import write_bytes
from facesyn_cli.data.pixels import encode_png, to_u8
from facesyn_cli.diffusion.chain import textbook_chain
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.diffusion.sampling import sample_latents
from facesyn_cli.diffusion.schedule import NoiseSchedule

GAP = 2  # pixels between the pictures of a grid


class Previews:
    """One row per context: the real image, then samples from fixed noise.

    Args:
        real: (rows, S, S, 3) uint8, the image each context comes from.
        contexts: (rows, E); None for an unconditional denoiser.
        keys: Key of each row's image; with the seed it decides the noise.
        samples_per_row: Samples of each context.
        latent_shape: (c, h, w).
        schedule: Noise schedule of the LDM.
        steps: DDIM steps.
        decode: Normalised latents (B, c, h, w) on the device -> pixels (B, 3, S, S) on the CPU.
        seed: Seed of the noise.
        device: Where the network lies.
        dtype: Number format in which the network runs.
    """

    def __init__(
        self, real: Tensor, contexts: Tensor | None, keys: list[str], samples_per_row: int,
        latent_shape: tuple[int, int, int], schedule: NoiseSchedule, steps: int,
        decode: Callable[[Tensor], Tensor], seed: int, device: torch.device, dtype: torch.dtype = torch.float32,
    ) -> None:
        self.real, self.decode, self.samples_per_row = real, decode, samples_per_row
        self.contexts = None if contexts is None else contexts.repeat_interleave(samples_per_row, dim=0).to(device)
        self.noise = torch.stack([
            image_noise(seed, key, sample, latent_shape) for key in keys for sample in range(samples_per_row)
        ]).to(device)
        self.schedule, self.steps, self.dtype = schedule, steps, dtype

    def write(self, denoiser: nn.Module, path: Path) -> None:
        """Sample with `denoiser`, which is in eval mode, and write the grid as PNG."""
        chain = textbook_chain(self.schedule, self.steps, eta=0.0)
        guidance = build_none(NoGuidanceConfig(name="none"))
        is_mixed = self.dtype is not torch.float32
        with torch.autocast(self.noise.device.type, self.dtype if is_mixed else None, enabled=is_mixed):
            latents = sample_latents(denoiser, chain, guidance, self.contexts, self.noise)
        samples = to_u8(self.decode(latents))                                      # (rows * k, S, S, 3)
        samples = samples.unflatten(0, (len(self.real), self.samples_per_row))     # (rows, k, S, S, 3)
        rows = torch.cat([self.real[:, None], samples], dim=1)                     # (rows, 1 + k, S, S, 3)
        write_bytes(path, encode_png(grid(rows.numpy())))


def grid(pictures: np.ndarray) -> np.ndarray:
    """Lay (rows, columns, S, S, 3) uint8 pictures on white, `GAP` pixels apart."""
    rows, columns, size = pictures.shape[:3]
    canvas = np.full((rows * (size + GAP) - GAP, columns * (size + GAP) - GAP, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (size + GAP), column * (size + GAP)
            canvas[top : top + size, left : left + size] = pictures[row, column]
    return canvas
