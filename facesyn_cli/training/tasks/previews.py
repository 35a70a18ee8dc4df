"""Previews of a training: grids of samples from a few training contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.data.picture_grid import picture_grid
from facesyn_cli.data.pixels import encode_png, to_u8
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.diffusion.scheduler_choice import build_scheduler, default_scheduler
from facesyn_cli.sampling.pipeline import LdmPipeline


@dataclass(frozen=True)
class PreviewSampler:
    """Samples images by plain DDIM, or Euler steps for a flow; the given noise is the only randomness.

    Args:
        schedule: Noise schedule or flow of the LDM.
        latent_shape: (c, h, w).
        seed: Seed of the noise.
        decode: Normalized latents (B, c, h, w) on the device -> pixels (B, 3, S, S) on the CPU.
        device: Device of the network.
        dtype: Autocast data type of the network.
    """

    schedule: NoiseSchedule | FlowSchedule
    latent_shape: tuple[int, int, int]
    seed: int
    decode: Callable[[Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype = torch.float32

    def noise(self, places: Sequence[tuple[str, int]]) -> Tensor:
        """Return the (n, c, h, w) starting noise of samples, each named by the key of its context and a number."""
        return torch.stack([image_noise(self.seed, key, sample, self.latent_shape) for key, sample in places])

    def draw(self, denoiser: nn.Module, contexts: Tensor | None, noise: Tensor, steps: int) -> Tensor:
        """Return (n, S, S, 3) uint8 images by `denoiser`, which is in eval mode.

        Args:
            denoiser: The network.
            contexts: (n, E); None for an unconditional denoiser.
            noise: (n, c, h, w).
            steps: Steps of DDIM, or of Euler for a flow.
        """
        prediction = self.schedule.prediction
        make_scheduler = build_scheduler(default_scheduler(prediction, "ddim", steps=steps), prediction)
        pipeline = LdmPipeline(
            denoiser, self.schedule, make_scheduler, build_none(NoGuidanceConfig(name="none")), self.latent_shape,
            device=self.device,
        )
        is_mixed = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype if is_mixed else None, enabled=is_mixed):
            latents = pipeline.latents(contexts, noise)
        return to_u8(self.decode(latents))


class Previews:
    """One row per context: the real image, then samples from fixed noise.

    Args:
        sampler: Makes the samples.
        real: (rows, S, S, 3) uint8, the image each context comes from.
        contexts: (rows, E); None for an unconditional denoiser.
        keys: Key of each row's image; with the seed it decides the noise.
        samples_per_row: Samples of each context.
        steps: Steps of DDIM, or of Euler for a flow.
    """

    def __init__(
        self, sampler: PreviewSampler, real: Tensor, contexts: Tensor | None, keys: list[str], samples_per_row: int,
        steps: int,
    ) -> None:
        self.sampler, self.real, self.samples_per_row, self.steps = sampler, real, samples_per_row, steps
        self.contexts = None if contexts is None else contexts.repeat_interleave(samples_per_row, dim=0)
        self.noise = sampler.noise([(key, sample) for key in keys for sample in range(samples_per_row)])

    def write(self, denoiser: nn.Module, path: Path) -> None:
        """Sample with `denoiser`, which is in eval mode, and write the grid as PNG."""
        samples = self.sampler.draw(denoiser, self.contexts, self.noise, self.steps)  # (rows * k, S, S, 3)
        samples = samples.unflatten(0, (len(self.real), self.samples_per_row))        # (rows, k, S, S, 3)
        rows = torch.cat([self.real[:, None], samples], dim=1)                        # (rows, 1 + k, S, S, 3)
        write_bytes(path, encode_png(picture_grid(rows.numpy(), rows.shape[2])))
