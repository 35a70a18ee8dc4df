"""What belongs to each image of a set: its context, its starting noise, the noise of its steps.

All of it depends on (seed, identity, sample) and the inputs alone, never on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.diffusion.guidance_negative import NegativeContexts
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.errors import UserError


class Variation(Protocol):
    """A plugin of kind `context_variation` as the engine sees it; its base class is in `contexts/variation.py`."""

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return the context of one image, (E,) float32."""

    def noise(self, own: Tensor, row: int, sample: int) -> Tensor:
        """Return the starting noise of one image from what it would have alone."""


class Conditions:
    """Contexts and noise by number of the image; number i is sample i % per_id of identity i // per_id.

    Args:
        identities: Names of the N identities; the noise of an image is drawn from its identity's name.
        vectors: (N, E) float32 contexts.
        per_id: Images of each identity.
        seed: Seed of all noise.
        latent_shape: (C, H, W).
        given_noise: (N, per_id, C, H, W) of any float type, or None: the noise is drawn from the seed.
        variation: Gives every image a context or noise of its own; None: those of its identity.
        negatives: Chooses whom each image is guided away from; None: nobody.

    An image that was refused and is drawn again has an attempt number from 1: another noise, the same contexts.
    """

    def __init__(
        self,
        identities: list[str],
        vectors: Tensor,
        per_id: int,
        seed: int,
        latent_shape: tuple[int, int, int],
        given_noise: np.ndarray | None = None,
        variation: Variation | None = None,
        negatives: NegativeContexts | None = None,
    ) -> None:
        self.latent_shape = latent_shape
        self._identities, self._vectors, self._per_id, self._seed = identities, vectors, per_id, seed
        self._given_noise, self._variation, self._negatives = given_noise, variation, negatives

    def key(self, image: int) -> str:
        """Return `identity/sample` of an image."""
        row, sample = divmod(image, self._per_id)
        return f"{self._identities[row]}/{sample}"

    def contexts(self, images: Sequence[int]) -> Tensor:
        """Return the contexts of B images, (B, E) float32."""
        if self._variation is None:
            return self._vectors[[image // self._per_id for image in images]]
        varied = [self._variation.context(*divmod(image, self._per_id)) for image in images]
        return torch.from_numpy(np.stack(varied))

    def negatives(self, images: Sequence[int]) -> Tensor | None:
        """Return the contexts that B images are guided away from, (B, E) float32; None: there are none."""
        if self._negatives is None:
            return None
        places = [divmod(image, self._per_id) for image in images]
        return torch.stack([
            self._negatives.context(self._vectors[row], self._identities[row], sample) for row, sample in places
        ])

    def noise(self, images: Sequence[int], attempts: Sequence[int] | None = None) -> Tensor:
        """Return the starting noise of B images, (B, C, H, W) float32; `attempts` as in `BatchEngine.start`."""
        return torch.stack([
            self._noise(*divmod(image, self._per_id), attempt)
            for image, attempt in zip(images, attempts or [0] * len(images), strict=True)
        ])

    def step_noise(self, images: Sequence[int], step: int, attempts: Sequence[int] | None = None) -> Tensor:
        """Return what a stochastic scheduler adds to B images after its step `step`, (B, C, H, W) float32."""
        places = [divmod(image, self._per_id) for image in images]
        return torch.stack([
            step_noise(self._seed, self._identities[row], sample, step, self.latent_shape, attempt)
            for (row, sample), attempt in zip(places, attempts or [0] * len(images), strict=True)
        ])

    def _noise(self, row: int, sample: int, attempt: int) -> Tensor:
        if self._given_noise is not None and attempt == 0:
            own = torch.from_numpy(np.array(self._given_noise[row, sample], dtype=np.float32))
            if not own.isfinite().all():
                raise UserError(f"noise.file: the noise of image {self._identities[row]}/{sample} is not finite")
        else:
            own = image_noise(self._seed, self._identities[row], sample, self.latent_shape, attempt)
        # Noise shared between identities gave the refused image; what is drawn again goes its own way.
        return own if self._variation is None or attempt else self._variation.noise(own, row, sample)
