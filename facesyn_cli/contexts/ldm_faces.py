"""Faces that the LDM draws while contexts are made: under the empty context, or of a candidate."""

from __future__ import annotations

import numpy as np
import torch

from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.pipeline import LdmPipeline


class LdmFaces:
    """Draws faces for a source or a filter; image k of a seed has the same noise in every run.

    Args:
        resources: LDM, autoencoder, device and seed.
        user: Name of the source or filter, for messages.
        noise: Name that the noise is drawn from.
        scheduler: Settings of a `scheduler` plugin.
        guidance: How outputs under several contexts are combined; None: no guidance.

    Attributes:
        evaluations: Network evaluations of one face, the recognizer's included.

    Raises:
        UserError: The scheduler cannot make its steps.
    """

    def __init__(
        self, resources: Resources, user: str, noise: str, scheduler: PluginConfig, guidance: Guidance | None = None
    ) -> None:
        self._seed, self._user, self._noise = resources.seed, user, noise
        device = resources.device or torch.device("cpu")
        self._pipeline = LdmPipeline.of(resources.ldm, resources.autoencoder, scheduler, guidance, device)
        self.evaluations = {"denoiser": self._pipeline.evaluations, "decoder": 1, "recognizer": 1}

    def draw(self, contexts: np.ndarray | None, numbers: list[int]) -> np.ndarray:
        """Draw one batch.

        Args:
            contexts: (B, E) float32 unit contexts; None: the empty one.
            numbers: B numbers of the noise.

        Returns:
            (B, S, S, 3) uint8, S the LDM's output size.

        Raises:
            UserError: The output of the LDM is not finite.
        """
        noise, step_noise = self._pipeline.keyed_noise(self._seed, [(self._noise, k) for k in numbers])
        given = None if contexts is None else torch.from_numpy(contexts)
        images, is_finite = self._pipeline(given, noise, step_noise=step_noise)
        if not is_finite.all():
            raise UserError(
                f"{self._user}: the output of the LDM is not finite; its weights are damaged, or it was not trained to"
                " its end"
            )
        return images.cpu().numpy()
