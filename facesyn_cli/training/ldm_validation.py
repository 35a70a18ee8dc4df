"""The loss on held-out images, always under the same timesteps and noise, so that its curve is smooth."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.diffusion.loss import diffusion_loss, training_noise
from facesyn_cli.diffusion.schedule import NoiseSchedule

VALIDATION_STEP = -1  # no step of training has this number, so the noise is nobody else's


class Validation:
    """Held-out images of this process.

    Args:
        latents: (n, c, h, w) normalized latents of this process's share.
        contexts: (n, E) or None.
        places: Place of each among all held-out images; it decides timestep and noise.
        seed: Seed of the training.
        schedule: Noise schedule.
        batch_size: Images per forward pass.
        device: Where the network lies.
    """

    def __init__(
        self, latents: Tensor, contexts: Tensor | None, places: list[int], seed: int, schedule: NoiseSchedule,
        batch_size: int, device: torch.device,
    ) -> None:
        self.latents, self.contexts, self.places, self.seed = latents, contexts, places, seed
        self.schedule, self.batch_size, self.device = schedule, batch_size, device

    @torch.no_grad()
    def loss_sum(self, denoiser: nn.Module, autocast: AbstractContextManager) -> Tensor:
        """Return [sum of the losses, number of images] of this process, float64, on the device."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in fixed_batches(len(self.places), self.batch_size):
            places = [self.places[i] for i in batch]
            latents = self.latents[batch.start : batch.stop].to(self.device)
            contexts = None if self.contexts is None else self.contexts[batch.start : batch.stop].to(self.device)
            draws = training_noise(
                self.seed, VALIDATION_STEP, places, tuple(latents.shape[1:]), self.schedule.num_timesteps, 0.0, 0.0, 1
            )
            with autocast:
                losses = diffusion_loss(denoiser, self.schedule, latents, contexts, draws.to(self.device))
            total[0] += losses.double().sum()
            total[1] += len(places)
        return total


def validation_places(count: int, batch_size: int, index: int, num_processes: int) -> list[int]:
    """Return which of `count` held-out images process `index` evaluates, in whole batches."""
    return [place for batch in share(fixed_batches(count, batch_size), index, num_processes) for place in batch]
