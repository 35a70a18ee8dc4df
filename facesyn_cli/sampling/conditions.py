"""What belongs to each image of a set: its context, its starting noise, the noise of its steps.

All of it depends on (seed, identity, sample) and the inputs alone, never on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.diffusion.noise import image_noise, step_noise


class Conditions:
    """Contexts and noise by number of the image; number i is sample i % per_id of identity i // per_id.

    Args:
        identities: Names of the N identities; the noise of an image is drawn from its identity's name.
        vectors: (N, E) float32 contexts.
        per_id: Images of each identity.
        seed: Seed of all noise.
        latent_shape: (C, H, W).
        given_noise: (N, per_id, C, H, W) of any float type, or None: the noise is drawn from the seed.
    """

    def __init__(
        self,
        identities: list[str],
        vectors: Tensor,
        per_id: int,
        seed: int,
        latent_shape: tuple[int, int, int],
        given_noise: np.ndarray | None = None,
    ) -> None:
        self.latent_shape = latent_shape
        self._identities, self._vectors, self._per_id, self._seed = identities, vectors, per_id, seed
        self._given_noise = given_noise

    def key(self, image: int) -> str:
        """Return `identity/sample` of an image."""
        row, sample = divmod(image, self._per_id)
        return f"{self._identities[row]}/{sample}"

    def contexts(self, images: Sequence[int]) -> Tensor:
        """Return the contexts of B images, (B, E) float32."""
        return self._vectors[[image // self._per_id for image in images]]

    def noise(self, images: Sequence[int]) -> Tensor:
        """Return the starting noise of B images, (B, C, H, W) float32."""
        return torch.stack([self._noise(*divmod(image, self._per_id)) for image in images])

    def step_noise(self, images: Sequence[int], step: int) -> Tensor:
        """Return what a stochastic scheduler adds to B images after its step `step`, (B, C, H, W) float32."""
        return torch.stack([
            step_noise(self._seed, self._identities[row], sample, step, self.latent_shape)
            for row, sample in (divmod(image, self._per_id) for image in images)
        ])

    def _noise(self, row: int, sample: int) -> Tensor:
        if self._given_noise is None:
            return image_noise(self._seed, self._identities[row], sample, self.latent_shape)
        return torch.from_numpy(np.array(self._given_noise[row, sample], dtype=np.float32))
