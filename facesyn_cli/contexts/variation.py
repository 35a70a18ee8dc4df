"""The base class of context variations: a context, or a starting noise, for each image of an identity.

Everything depends on (seed, identity, sample) and on the contexts of the set, never on the batch:

    variation = build("context_variation", cfg.variation)   # settings only, nothing is read
    variation.open(vectors, identities, seed)               # files are checked
    variation.context(row, sample)                          # of image `sample` of identity number `row`
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from facesyn_cli.artifacts.header import Parent


class ContextVariation:
    """Base of all variations: leaves context and noise unchanged.

    Attributes:
        varies_contexts: `context` does not return the identity's context, so contexts are stored per image.
        needs_all_contexts: The result depends on every context of the set, so the set must not change between
            runs on one folder.
        embedder: Digest of the recognizer behind contexts that were read; None: none were read, or unknown.
    """

    varies_contexts = True
    needs_all_contexts = False
    embedder: str | None = None

    def open(self, vectors: np.ndarray, identities: list[str], seed: int) -> dict[str, Parent]:
        """Take the set of contexts.

        Args:
            vectors: (N, E) float32 unit contexts of the whole set, which may be more than are sampled.
            identities: Names of the N identities.
            seed: Seed of everything random.

        Returns:
            Further inputs that were read, for the header.

        Raises:
            UserError: An input is not what was expected.
        """
        self.vectors, self.identities, self.seed = vectors, identities, seed
        return {}

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return the context of one image, (E,) float32 of length 1.

        Args:
            row: Number of its identity.
            sample: Which image of that identity.
        """
        return self.vectors[row]

    def noise(self, own: Tensor, row: int, sample: int) -> Tensor:
        """Return the starting noise of one image, (C, H, W) float32 N(0, 1), from its own independent noise."""
        return own
