"""Faces that the own LDM draws while contexts are made: without a context, or of a candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from facesyn_cli.contexts.source import Ldm
from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.sampling import sample_latents
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.diffusion.schedulers import Scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry


def scheduler_section(value: Any) -> Any:
    """Validate a scheduler section inside of a plugin's settings; one without a name means `ddim`."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        try:
            return registry.configure("scheduler", {"name": "ddim", **value})
        except ValidationError as error:
            problems = [f"scheduler.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise UserError("; ".join(problems)) from error
    return value


def draw_faces(
    ldm: Ldm,
    schedule: NoiseSchedule,
    make_scheduler: Callable[[NoiseSchedule], Scheduler],
    guidance: Guidance,
    contexts: np.ndarray | None,
    seed: int,
    noises: list[tuple[str, int]],
) -> np.ndarray:
    """Draw one batch.

    Args:
        ldm: The LDM.
        schedule: Its noise schedule.
        make_scheduler: Makes a fresh scheduler.
        guidance: How outputs under several contexts are combined.
        contexts: (B, E) float32 unit contexts; None: the empty one.
        seed: Seed of the noise.
        noises: For each image whose noise it is, and which of them.

    Returns:
        (B, S, S, 3) uint8, S the LDM's output size.

    Raises:
        UserError: The LDM gives numbers that are not finite.
    """
    settings = ldm.settings
    shape = (settings.latent_channels, settings.latent_size, settings.latent_size)

    def draw_noise(index: int) -> Tensor:
        return torch.stack([step_noise(seed, name, k, index, shape) for name, k in noises]).to(ldm.device)

    noise = torch.stack([image_noise(seed, name, k, shape) for name, k in noises]).to(ldm.device)
    given = None if contexts is None else torch.from_numpy(contexts).to(ldm.device)
    latents = sample_latents(                                                # (B, c, h, w)
        ldm.denoiser, make_scheduler(schedule), guidance, given, noise, draw_noise
    )
    images, is_finite = LatentDecoder(ldm.autoencoder, settings, settings.output_size, ldm.device)(latents)
    if not is_finite.all():
        raise UserError("the LDM gave numbers that are not finite; its weights are damaged, or it was not trained to "
                        "its end")
    return images.cpu().numpy()
