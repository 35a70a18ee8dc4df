"""The context source `pca`: directions drawn from a normal distribution fitted to embeddings of real people.

"PCA sampling" of Vec2Face (Wu et al. 2025, arXiv:2409.02979), here of unit embeddings: with mean m and covariance C of
the embeddings of known people,

    c = (m + s C^(1/2) n) / |...|,   n ~ N(0, I)

or with the `components` largest eigenvalues of C alone. Uniform directions (`sphere`) spread over all 512 dimensions,
but real embeddings, which an LDM is trained on, do not.

# Differs from Vec2Face: the root of C is the symmetric one, which does not depend on the signs of eigenvectors, so a
# seed means the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.config.fields import affects_result
from facesyn_cli.contexts.endless import BLOCK, directions
from facesyn_cli.contexts.source import CandidateBatch, ContextSource, Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class PcaConfig(PluginConfig):
    """Settings of the source `pca`; the embeddings are `known`."""

    components: int | None = affects_result(None, "principal components that vary; None: all", ge=1)
    scale: float = affects_result(1.0, "s, spread around the mean; 1: as wide as real people", gt=0)


@register(
    "contexts",
    "pca",
    Card(
        about="Random directions, distributed like the embeddings of the EmbeddingSet `known`; has no faces.",
        paper="Vec2Face, Wu et al. 2025, arXiv:2409.02979",
    ),
)
class Pca(ContextSource):
    """Endless directions from the fitted distribution; block b of 1024 candidates is drawn from (seed, known, b)."""

    needs = frozenset({"known"})
    face_origin = GENERATED

    def __init__(self, cfg: PcaConfig) -> None:
        self._cfg = cfg

    def open(self, resources: Resources) -> None:
        """Fit the distribution.

        Raises:
            UserError: There are too few embeddings for one.
        """
        super().open(resources)
        known = resources.known.astype(np.float64)
        components = min(known.shape[1], self._cfg.components or known.shape[1])
        if len(known) <= 1 or self._cfg.components is not None and len(known) <= components:
            raise UserError(f"source pca: {len(known)} known embeddings are too few for {components} components")
        if self._cfg.components is not None and self._cfg.components > known.shape[1]:
            raise UserError(f"source pca: {self._cfg.components} components, but embeddings have {known.shape[1]}")
        self._digest = hashlib.sha256(resources.known.tobytes()).hexdigest()  # other people get other noise
        self._mean = known.mean(axis=0)
        variances, vectors = np.linalg.eigh(np.cov(known, rowvar=False))     # ascending
        variances, vectors = variances[-components:].clip(min=0), vectors[:, -components:]
        self._root = (vectors * np.sqrt(variances)) @ vectors.T              # (E, E)

    @property
    def embedder(self) -> str | None:
        """The recognizer of the known embeddings."""
        return self.resources.known_embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield directions in batches of the size that the networks of a filter take."""
        return directions(self._block, start, self.resources.batch_size)

    def _block(self, number: int) -> np.ndarray:
        random = keyed_random("pca", self.resources.seed, self._digest, number)
        return self._mean + self._cfg.scale * random.standard_normal((BLOCK, len(self._mean))) @ self._root
