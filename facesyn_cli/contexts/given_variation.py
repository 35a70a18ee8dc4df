"""The variation `given`: one given context per image, for example those that another set was made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.config.fields import input_path
from facesyn_cli.contexts.variation import ContextVariation
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class GivenConfig(PluginConfig):
    """Settings of `given`."""

    path: Path | None = input_path(
        None, "EmbeddingSet with a row per image, for example the image-contexts of another set"
    )


@register(
    "context_variation",
    "given",
    Card(about="Contexts read from an EmbeddingSet, one row per image; reproduces a set from its image-contexts."),
)
class GivenVariation(ContextVariation):
    """Contexts read from an EmbeddingSet by key."""

    def __init__(self, cfg: GivenConfig) -> None:
        self._path = cfg.path

    def open(self, vectors: np.ndarray, identities: list[str], seed: int) -> dict[str, Parent]:
        """Read the set; see `ContextVariation.open`.

        Raises:
            UserError: There is none, or its vectors have another size.
        """
        if self._path is None:
            raise UserError("variation given needs the contexts: variation.path=FOLDER")
        given = EmbeddingSet.open(self._path)
        if given.vectors.shape[1] != vectors.shape[1]:
            raise UserError(
                f"{self._path} holds vectors of {given.vectors.shape[1]} numbers, the contexts have {vectors.shape[1]}"
            )
        self.embedder = given.embedder
        self._given, self._row_of = given, {key: row for row, key in enumerate(given.keys)}
        return {**super().open(vectors, identities, seed), "variation": given.parent()}

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return the row of image `identity/sample`; see `ContextVariation.context`.

        Raises:
            UserError: There is none.
        """
        key = f"{self.identities[row]}/{sample}"
        if key not in self._row_of:
            raise UserError(f"{self._path} has no context for image {key!r}")
        return self._given.vectors[self._row_of[key]]
