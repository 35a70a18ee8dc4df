"""The context filter `novel`: accept identities that are not in a given set of real people.

DCFace (Kim et al. 2023, arXiv:2304.07060) drops candidates with a cosine above 0.3 to any subject of
the generator's training set.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from facesyn_cli.contexts.cosine import reaches
from facesyn_cli.contexts.source import Resources
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class NovelConfig(PluginConfig):
    """Settings of the filter `novel`."""

    r: float = Field(0.3, ge=-1, le=1)  # cosine from which a candidate counts as a known person


class Novel:
    """Drop candidates that are close to a known person.

    Args:
        r: Cosine from which a candidate counts as a known person.
    """

    needs: frozenset[str] = frozenset({"known"})
    evaluations: dict[str, int] = {}
    remembers = False

    def __init__(self, r: float) -> None:
        self.r = r
        self._known = np.empty((0, 0), dtype=np.float32)

    def open(self, resources: Resources) -> None:
        """Take the known embeddings from the resources."""
        self._known = resources.known

    def restore(self, vectors: np.ndarray) -> None:
        """Do nothing: decisions do not depend on earlier candidates."""

    def select(self, vectors: np.ndarray) -> np.ndarray:
        """Accept candidates with a cosine below r to every known row; see `ContextFilter.select`."""
        return ~reaches(vectors, self._known, self.r)


@register(
    "context_filter",
    "novel",
    Card(
        about="Keep a candidate only if its cosine to every row of the EmbeddingSet `known` is below r.",
        paper="DCFace, Kim et al. 2023, arXiv:2304.07060",
    ),
)
def build_novel(cfg: NovelConfig) -> Novel:
    """Build the filter."""
    return Novel(cfg.r)
