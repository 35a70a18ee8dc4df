"""Which images are drawn again: those that a judge network finds too unlike their identity.

Vec2Face+ (arXiv:2507.17192) credits the consistency of identities within a class for most of its gain. Here an
image is kept when

    cos(f, r) >= lowest

with f the judge's embedding of the image and r a reference of its identity: its context, where the judge is the
recognizer the contexts come from; or the mean of the unit embeddings of the identity's first `center_images`
images as they were first drawn, without the image itself. That reference depends on the seed and the identity
alone, not on what was drawn again nor on how many images there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SampleFilter(Protocol):
    """Scores images by what a judge network makes of them."""

    judge: Path     # weights of the judge network
    attempts: int   # how often an image is drawn again at most
    lowest: float   # score from which an image is kept

    def check(self, per_id: int, judge: str, embedder: str | None) -> None:
        """Refuse what does not fit.

        Args:
            per_id: Images of each identity.
            judge: Digest of the judge's weights.
            embedder: Digest of the recognizer behind the contexts; None unknown.

        Raises:
            UserError: The filter cannot work so.
        """

    def scores(self, vectors: NDArray, samples: NDArray, first: NDArray, context: NDArray) -> NDArray:
        """Return (n,) scores of images of one identity, the higher the better.

        Args:
            vectors: (n, D) unit embeddings of the images.
            samples: (n,) which images of the identity they are.
            first: (per_id, D) unit embeddings of all its images as they were first drawn.
            context: (E,) its context.
        """


class ConsistencyConfig(PluginConfig):
    """Settings of `consistency`."""

    judge: Path | None = input_path(None, "weights of the judge, a face recognizer; better not the one of the contexts")
    lowest: float = affects_result(0.3, "cosine to the identity below which an image is drawn again", gt=-1, le=1)
    attempts: int = affects_result(3, "how often an image is drawn again at most; then the best draw is kept", ge=1)
    reference: Literal["center", "context"] = affects_result(
        "center", "what images are compared with; context: same judge"
    )
    center_images: int = affects_result(8, "images whose mean is the center, the first of each identity", ge=2)


class Consistency:
    """Cosine of an image to its identity.

    Args:
        cfg: Settings.

    Raises:
        UserError: No judge is named.
    """

    def __init__(self, cfg: ConsistencyConfig) -> None:
        self.judge, self.attempts, self.lowest = cfg.judge, cfg.attempts, cfg.lowest
        self._reference, self._center_images = cfg.reference, cfg.center_images

    def check(self, per_id: int, judge: str, embedder: str | None) -> None:
        """Refuse centers of too few images, and contexts of another recognizer; see `SampleFilter.check`."""
        if self._reference == "center" and per_id < self._center_images:
            raise UserError(
                f"filter.center_images is {self._center_images}, but an identity has {per_id} images (per_id);"
                f" give filter.center_images={max(per_id, 2)}"
            )
        if self._reference == "context" and embedder is not None and judge != embedder:
            raise UserError(
                f"filter.reference=context compares with contexts of recognizer {embedder[:19]}, but the judge is"
                f" {judge[:19]}; use filter.reference=center"
            )

    def scores(self, vectors: NDArray, samples: NDArray, first: NDArray, context: NDArray) -> NDArray:
        """Return the cosines to the context, or to the center of the other images; see `SampleFilter.scores`."""
        vectors = np.asarray(vectors, dtype=np.float64)
        if self._reference == "context":
            return vectors @ np.asarray(context, dtype=np.float64)
        center = np.asarray(first[: self._center_images], dtype=np.float64)
        references = np.tile(center.sum(axis=0), (len(vectors), 1))            # (n, D)
        is_part = samples < self._center_images
        references[is_part] -= center[samples[is_part]]
        lengths = np.linalg.norm(references, axis=1)
        return np.einsum("nd,nd->n", vectors, references) / np.maximum(lengths, 1e-12)


@register(
    "sample_filter",
    "consistency",
    Card(
        about="Draw an image again while a judge network finds it unlike the other images, or the context, of its"
        " identity; up to (1 + attempts) times the network evaluations.",
        paper="idea: Vec2Face+, arXiv:2507.17192",
    ),
)
def build_consistency(cfg: ConsistencyConfig) -> Consistency:
    """Build the filter."""
    return Consistency(cfg)
