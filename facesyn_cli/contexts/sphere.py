"""The context source `sphere`: random directions without a face, uniform on the unit sphere.

IDiff-Face (Boutros et al. 2023, arXiv:2308.04995) calls them "synthetic uniform" contexts: a vector of
512 independent N(0, 1) numbers divided by its length is uniform on the sphere (Muller 1959).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.contexts.endless import BLOCK, directions
from facesyn_cli.contexts.source import EMBEDDING_SIZE, CandidateBatch, Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SphereConfig(PluginConfig):
    """Settings of the source `sphere`: none."""


class Sphere:
    """Endless uniform directions; block b of 1024 candidates is drawn from (seed, b)."""

    needs: frozenset[str] = frozenset()
    may_use: frozenset[str] = frozenset()
    face_origin = GENERATED
    evaluations: dict[str, int] = {}
    num_candidates = None
    embedder = None  # a uniform direction belongs to no recognizer

    def __init__(self) -> None:
        self._seed = 0

    def open(self, resources: Resources) -> None:
        """Take the seed from the resources."""
        self._seed = resources.seed

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield directions in blocks."""
        return directions(self._block, start)

    def _block(self, number: int) -> np.ndarray:
        return keyed_random("sphere", self._seed, number).standard_normal((BLOCK, EMBEDDING_SIZE))


@register(
    "contexts",
    "sphere",
    Card(
        about="Uniform random directions; needs no network, but preserves identity less well than embeddings of faces.",
        paper="IDiff-Face, Boutros et al. 2023, arXiv:2308.04995",
    ),
)
def build_sphere(cfg: SphereConfig) -> Sphere:
    """Build the source."""
    return Sphere()
