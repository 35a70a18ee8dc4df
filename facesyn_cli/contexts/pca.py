"""The context source `pca`: directions drawn from a normal distribution fitted to embeddings of real people.

"PCA sampling" of Vec2Face (Wu et al. 2025, arXiv:2409.02979), here of unit embeddings: with mean m and covariance C of
the embeddings of known people,

    c = (m + s C^(1/2) n) / |...|,   n ~ N(0, I)

or with the `components` largest eigenvalues of C alone. Uniform directions (`sphere`) spread over all 512 dimensions,
but real embeddings, which an LDM is trained on, do not.

With `groups` there are several means, those of k-means (Lloyd 1982, started as in Arthur and Vassilvitskii 2007), and C
is the covariance around the mean of the own group. Every group is drawn equally often, however many photos it has, so
people of whom there are few photos are not drawn seldom.

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
    groups: int = affects_result(
        1, "groups of similar people, found by k-means and drawn in equal parts; 1: as often as in `known`", ge=1
    )
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
        if self._cfg.groups > len(known):
            raise UserError(f"source pca: {self._cfg.groups} groups, but there are {len(known)} known embeddings")
        self._digest = hashlib.sha256(resources.known.tobytes()).hexdigest()  # other people get other noise
        self._means, own = group_means(known, self._cfg.groups, keyed_random("pca-groups", self._digest))
        covariance = np.cov(known - self._means[own] if self._cfg.groups > 1 else known, rowvar=False)
        variances, vectors = np.linalg.eigh(covariance)                      # ascending
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
        spread = self._cfg.scale * random.standard_normal((BLOCK, len(self._root))) @ self._root
        return self._means[random.randint(len(self._means), size=BLOCK)] + spread


def group_means(
    vectors: np.ndarray, groups: int, random: np.random.RandomState, rounds: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Divide vectors by k-means.

    Args:
        vectors: (N, E) float64.
        groups: K, at most N.
        random: Chooses the first means, each far from those before it (k-means++).
        rounds: Most rounds of Lloyd's algorithm.

    Returns:
        Means (K, E), and the group of each vector, (N,) int.
    """
    means = [vectors.mean(axis=0)] if groups == 1 else [vectors[random.randint(len(vectors))]]
    nearest = np.full(len(vectors), np.inf)
    while len(means) < groups:
        nearest = np.minimum(nearest, np.square(vectors - means[-1]).sum(axis=1))
        means.append(vectors[random.choice(len(vectors), p=nearest / nearest.sum())])
    found, own = np.stack(means), np.full(len(vectors), -1)
    for _ in range(rounds):
        distances = np.square(found).sum(axis=1) - 2 * vectors @ found.T     # (N, K), up to |vector|^2
        before, own = own, distances.argmin(axis=1)
        if (own == before).all():
            break
        found = np.stack([
            vectors[own == group].mean(axis=0) if (own == group).any() else found[group] for group in range(groups)
        ])
    return found, own
