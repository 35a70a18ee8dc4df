"""The context filter `novel`: accept identities that are not in a given set of real people.

DCFace (Kim et al. 2023, arXiv:2304.07060) drops candidates with a cosine above 0.3 to any subject of
the generator's training set.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from facesyn_cli.contexts.cosine import reaches
from facesyn_cli.contexts.source import ContextFilter
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class NovelConfig(PluginConfig):
    """Settings of the filter `novel`."""

    r: float = Field(0.3, ge=-1, le=1, description="cosine from which a candidate counts as a known person")


@register(
    "context_filter",
    "novel",
    Card(
        about="Keep a candidate only if its cosine to every row of the EmbeddingSet `known` is below r.",
        paper="DCFace, Kim et al. 2023, arXiv:2304.07060",
    ),
)
class Novel(ContextFilter):
    """Drop candidates that are close to a known person."""

    needs = frozenset({"known"})

    def __init__(self, cfg: NovelConfig) -> None:
        self.r = cfg.r

    def select(self, vectors: np.ndarray) -> np.ndarray:
        """Accept candidates with a cosine below r to every known row; see `ContextFilter.select`."""
        return ~reaches(vectors, self.resources.known, self.r)
