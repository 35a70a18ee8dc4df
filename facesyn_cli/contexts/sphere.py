"""The context source `sphere`: random directions without a face, uniform on the unit sphere.

IDiff-Face (Boutros et al. 2023, arXiv:2308.04995) calls them "synthetic uniform" contexts: a vector of
512 independent N(0, 1) numbers divided by its length is uniform on the sphere (Muller 1959).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.contexts.endless import BLOCK, directions
from facesyn_cli.contexts.source import CandidateBatch, ContextSource
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SphereConfig(PluginConfig):
    """Settings of the source `sphere`: none."""


@register(
    "contexts",
    "sphere",
    Card(
        about="Uniform random directions; needs no network, but preserves identity less well than embeddings of faces.",
        paper="IDiff-Face, Boutros et al. 2023, arXiv:2308.04995",
    ),
)
class Sphere(ContextSource):
    """Endless uniform directions; block b of 1024 candidates is drawn from (seed, b)."""

    face_origin = GENERATED
    embedder = None  # a uniform direction belongs to no recognizer

    def __init__(self, cfg: SphereConfig) -> None:
        pass

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield directions in batches of the size that the networks of a filter take."""
        return directions(self._block, start, self.resources.batch_size)

    def _block(self, number: int) -> np.ndarray:
        return keyed_random("sphere", self.resources.seed, number).standard_normal((BLOCK, EMBEDDING_SIZE))
