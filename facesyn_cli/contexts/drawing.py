"""Faces that the own LDM draws while contexts are made: without a context, or of a candidate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.contexts.source import Resources
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig


class Drawing:
    """Draws faces for a source or a filter; image k of a seed has the same noise in every run.

    Args:
        who: Who asks, for messages.
        noise: Name that the noise is drawn from.
        scheduler: Settings of the scheduler.
        guidance: How outputs under several contexts are combined.

    Attributes:
        evaluations: Network evaluations of one face, the recognizer's included; known after `open`.
    """

    def __init__(self, who: str, noise: str, scheduler: PluginConfig, guidance: Guidance) -> None:
        self._who, self._noise, self._guidance = who, noise, guidance
        self._make_scheduler = registry.build("scheduler", scheduler)
        self._resources = Resources()
        self.evaluations: dict[str, int] = {}

    def open(self, resources: Resources) -> None:
        """Take the LDM.

        Raises:
            UserError: The scheduler cannot make its steps.
        """
        self._resources = resources
        settings = resources.ldm.settings
        self._schedule = ldm_schedule(settings)
        steps = count_evaluations(self._make_scheduler(self._schedule), self._guidance, settings.num_timesteps)
        self.evaluations = {"denoiser": steps, "decoder": 1, "recognizer": 1}

    def draw(self, contexts: np.ndarray | None, numbers: list[int]) -> np.ndarray:
        """Draw one batch.

        Args:
            contexts: (B, E) float32 unit contexts; None: the empty one.
            numbers: B numbers of the noise.

        Returns:
            (B, S, S, 3) uint8, S the LDM's output size.

        Raises:
            UserError: The LDM gives numbers that are not finite.
        """
        ldm, seed, name = self._resources.ldm, self._resources.seed, self._noise
        settings = ldm.settings
        shape = (settings.latent_channels, settings.latent_size, settings.latent_size)

        def draw_noise(index: int) -> Tensor:
            return torch.stack([step_noise(seed, name, k, index, shape) for k in numbers]).to(ldm.device)

        noise = torch.stack([image_noise(seed, name, k, shape) for k in numbers]).to(ldm.device)
        given = None if contexts is None else torch.from_numpy(contexts).to(ldm.device)
        latents = sample_latents(                                           # (B, c, h, w)
            ldm.denoiser, self._make_scheduler(self._schedule), self._guidance, given, noise, draw_noise,
            num_timesteps=settings.num_timesteps,
        )
        decode = LatentDecoder(ldm.autoencoder, settings, settings.output_size, ldm.device)
        images, is_finite = decode(latents)
        if not is_finite.all():
            raise UserError(f"{self._who}: the LDM gave numbers that are not finite; its weights are damaged, or it was"
                            " not trained to its end")
        return images.cpu().numpy()
