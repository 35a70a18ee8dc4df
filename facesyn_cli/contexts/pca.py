"""The context source `pca`: directions drawn from a normal distribution fitted to embeddings of real people.

"PCA sampling" of Vec2Face (Wu et al. 2025, arXiv:2409.02979), here of unit embeddings: with mean m and covariance C of
the embeddings of known people,

    c = (m + s C^(1/2) n) / |...|,   n ~ N(0, I)

or with the `components` largest eigenvalues of C alone. Uniform directions (`sphere`) spread over all 512 dimensions,
but real embeddings, which an LDM is trained on, do not.

With `groups` there is a distribution for each pattern of identity names, with m and C of the embeddings of those people
alone, and every one is drawn equally often, however many photos it has.

# Differs from Vec2Face: the root of C is the symmetric one, which does not depend on the signs of eigenvectors, so a
# seed means the same everywhere.
"""

from __future__ import annotations

import fnmatch

import numpy as np

from facesyn_cli.config.fields import affects_result
from facesyn_cli.console import log
from facesyn_cli.contexts.endless import BLOCK, KnownDirections
from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class PcaConfig(PluginConfig):
    """Settings of the source `pca`; the embeddings are `known`."""

    components: int | None = affects_result(None, "principal components that vary; None: all", ge=1)
    groups: tuple[str, ...] = affects_result(
        (), "patterns of identity names, such as [a*, b*]: the people of each are drawn in equal parts, others not at "
        "all; empty: all people alike"
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
class Pca(KnownDirections):
    """Endless directions from the fitted distribution.

    Attributes:
        fits: Of each group the mean (E,), principal directions (E, K) and standard deviations (K,) along them; known
            after `open`.
    """

    def __init__(self, cfg: PcaConfig) -> None:
        self._cfg = cfg

    def open(self, resources: Resources) -> None:
        """Fit the distribution.

        Raises:
            UserError: There are too few embeddings for one.
        """
        super().open(resources)
        known = resources.known.astype(np.float64)
        self.fits = [_fit(known[rows], self._cfg, group) for group, rows in self._groups().items()]
        self._means = np.stack([mean for mean, _, _ in self.fits])
        self._roots = np.stack([(axes * spread) @ axes.T for _, axes, spread in self.fits])

    def _groups(self) -> dict[str, np.ndarray]:
        """Return the rows of each group, by its pattern."""
        people = np.array(self.resources.known_people or [], dtype=str)
        if not self._cfg.groups:
            return {"": np.arange(len(self.resources.known))}
        if not len(people):
            raise UserError("source pca: the known embeddings have no identity names, which groups need")
        names, own = np.unique(people, return_inverse=True)
        free, found = np.ones(len(names), dtype=bool), {}
        for pattern in self._cfg.groups:
            chosen = free & np.array([fnmatch.fnmatchcase(name, pattern) for name in names])
            free &= ~chosen
            found[pattern] = np.flatnonzero(chosen[own])
            log.info(f"source pca: group {pattern} has {chosen.sum()} people, {len(found[pattern])} photos")
        if free.any():
            log.info(f"source pca: {free.sum()} people are in no group and are not drawn like")
        return found

    def block(self, number: int) -> np.ndarray:
        """Return the directions of one block."""
        random = keyed_random("pca", self.resources.seed, self.digest, number)
        normal = self._cfg.scale * random.standard_normal((BLOCK, self._means.shape[1]))
        if len(self._means) == 1:
            return self._means[0] + normal @ self._roots[0]
        drawn, group = np.empty_like(normal), random.randint(len(self._means), size=BLOCK)
        for number, (mean, root) in enumerate(zip(self._means, self._roots, strict=True)):
            rows = group == number
            drawn[rows] = mean + normal[rows] @ root
        return drawn


def _fit(known: np.ndarray, cfg: PcaConfig, group: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean, the principal directions and the standard deviations of embeddings (M, E); see `Pca.fits`.

    Raises:
        UserError: There are too few of them.
    """
    size = known.shape[1]
    components = min(size, cfg.components or size)
    if len(known) <= 1 or cfg.components is not None and len(known) <= components:
        where = f" of group {group}" if group else ""
        raise UserError(f"source pca: {len(known)} known embeddings{where} are too few for {components} components")
    if cfg.components is not None and cfg.components > size:
        raise UserError(f"source pca: {cfg.components} components, but embeddings have {size}")
    variances, vectors = np.linalg.eigh(np.cov(known, rowvar=False))             # ascending
    return known.mean(axis=0), vectors[:, -components:], np.sqrt(variances[-components:].clip(min=0))
