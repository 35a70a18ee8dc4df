"""Do packed networks draw the faces that they drew before?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from facesyn_cli.data.decoded_latents import LatentDecoder
from facesyn_cli.diffusion.denoising_loop import sample_latents
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry

_CPU = torch.device("cpu")
_SIMPLE = ("none", "cfg")  # guidances that need nothing but contexts
_LEAST_COSINE = 0.99       # of the embeddings of one face by a network before and after
_LEAST_SPREAD = 1.0        # gray levels; less is a plain color, not a picture


@dataclass(frozen=True)
class Networks:
    """The three networks of a starter, before or after packing.

    Args:
        ldm: Denoiser and its settings.
        autoencoder: Its decoder.
        embed: (N, S, S, 3) uint8 faces -> (N, E) unit embeddings.
    """

    ldm: LoadedLdm
    autoencoder: nn.Module
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def check_same_faces(
    before: Networks, after: Networks, contexts: NDArray[np.float32], settings: dict[str, Any]
) -> dict[str, float]:
    """Draw a face of each context with both and compare them.

    Args:
        before: As trained.
        after: As packed.
        contexts: (N, E).
        settings: `scheduler` and `guidance` sections; without them ddim and no guidance.

    Returns:
        `mean_gray_levels` and `largest_gray_levels` by which the faces differ, and `least_cosine` between the
        embeddings of the same faces.

    Raises:
        UserError: Faces that are not finite or of one color, or embeddings that moved.
    """
    faces = [draw(networks, contexts, settings) for networks in (before, after)]
    difference = np.abs(faces[0].astype(np.int16) - faces[1])
    rows = [networks.embed(faces[1]) for networks in (before, after)]
    cosine = float((rows[0] * rows[1]).sum(axis=1).min())
    if cosine < _LEAST_COSINE:
        raise UserError(f"half precision moves embeddings: cosine {cosine:.4f}, at least {_LEAST_COSINE} was expected")
    return {
        "mean_gray_levels": round(float(difference.mean()), 4), "largest_gray_levels": int(difference.max()),
        "least_cosine": round(cosine, 6),
    }


def draw(networks: Networks, contexts: NDArray[np.float32], settings: dict[str, Any]) -> NDArray[np.uint8]:
    """Return a face of each context, (N, S, S, 3), from fixed noise, on the CPU.

    Raises:
        UserError: One is not finite, or all of one color.
    """
    facts = networks.ldm.config
    guidance = settings.get("guidance", {"name": "none"})
    if guidance["name"] not in _SIMPLE:
        guidance = {"name": "none"}
    scheduler = registry.configure("scheduler", settings.get("scheduler", {"name": "ddim"}))
    shape = (facts.latent_channels, facts.latent_size, facts.latent_size)
    number = range(len(contexts))
    latents = sample_latents(
        networks.ldm.module,
        registry.build("scheduler", scheduler)(ldm_schedule(facts)),
        registry.build("guidance", registry.configure("guidance", guidance)),
        torch.from_numpy(np.ascontiguousarray(contexts, dtype=np.float32)),
        torch.stack([image_noise(0, "starter", k, shape) for k in number]),
        lambda index: torch.stack([step_noise(0, "starter", k, index, shape) for k in number]),
        num_timesteps=facts.num_timesteps,
    )
    faces, is_finite = LatentDecoder(networks.autoencoder, facts, facts.output_size, _CPU)(latents)
    faces = faces.numpy()
    if not is_finite.all():
        raise UserError("the LDM draws faces that are not finite; it is damaged, or not trained to its end")
    if faces.reshape(len(faces), -1).std(axis=1).min() < _LEAST_SPREAD:
        raise UserError("the LDM draws pictures of a single color; it is damaged, or not trained to its end")
    return faces
