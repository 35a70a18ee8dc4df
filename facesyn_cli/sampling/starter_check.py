"""The check that packed networks of a starter draw the faces that they drew before packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from facesyn_cli.diffusion.scheduler_choice import default_scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.pipeline import LdmPipeline

_SIMPLE = ("none", "cfg", "internal")  # guidances that need only contexts
_LEAST_COSINE = 0.99       # of the embeddings of one face by a network before and after
_LEAST_SPREAD = 1.0        # gray levels; below it an image is of one color


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
    """Draw a face of each context with both sets of networks and compare the faces.

    Args:
        before: As trained.
        after: As packed.
        contexts: (N, E).
        settings: `scheduler` and `guidance` sections; without them ddim, or flow-euler, and no guidance.

    Returns:
        `mean_gray_levels` and `largest_gray_levels` by which the faces differ, and `least_cosine` between the
        embeddings of the same faces.

    Raises:
        UserError: Faces are not finite or of one color, or embeddings differ.
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
    guidance = settings.get("guidance", {"name": "none"})
    if guidance["name"] not in _SIMPLE:
        guidance = {"name": "none"}
    pipeline = LdmPipeline.of(
        networks.ldm, networks.autoencoder,
        registry.configure("scheduler", settings["scheduler"]) if "scheduler" in settings
        else default_scheduler(networks.ldm.config.prediction, "ddim"),
        registry.configure("guidance", guidance),
    )
    noise, step_noise = pipeline.keyed_noise(0, [("starter", k) for k in range(len(contexts))])
    vectors = torch.from_numpy(np.ascontiguousarray(contexts, dtype=np.float32))
    faces, is_finite = pipeline(vectors, noise, step_noise=step_noise)
    faces = faces.numpy()
    if not is_finite.all():
        raise UserError("the faces of the LDM are not finite; it is damaged or not trained to its end")
    if faces.reshape(len(faces), -1).std(axis=1).min() < _LEAST_SPREAD:
        raise UserError("the faces of the LDM are of a single color; it is damaged or not trained to its end")
    return faces
