"""The filter `consistency`: reject images whose embedding is too far from their identity.

Vec2Face+ (arXiv:2507.17192) credits the consistency of identities within a class for most of its gain. An image is
accepted when

    cos(f, r) >= lowest

with f the judge's embedding of the image and r a reference of its identity: its context, where the judge is the
recognizer behind the contexts; or the mean of the unit embeddings of the identity's first `center_images` images as
they were first drawn, without the image itself. That reference depends on the seed and the identity alone, not on
later draws nor on the number of images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SampleFilter(Protocol):
    """Scores images by their embeddings of a judge recognizer."""

    judge: Path | None  # weights of the judge
    attempts: int       # how often an image is drawn again at most
    lowest: float       # score from which an image is accepted

    def check(self, per_id: int, judge: str, embedder: str | None) -> None:
        """Refuse settings that the filter cannot work with.

        Args:
            per_id: Images of each identity.
            judge: Digest of the judge's weights.
            embedder: Digest of the recognizer behind the contexts; None unknown.

        Raises:
            UserError: They do not fit.
        """

    def scores(self, vectors: NDArray, samples: NDArray, first: NDArray, context: NDArray) -> NDArray:
        """Return (n,) scores of images of one identity, the higher the better.

        Args:
            vectors: (n, D) unit embeddings of the images.
            samples: (n,) their numbers within the identity.
            first: (per_id, D) unit embeddings of all images of the identity as they were first drawn.
            context: (E,) context of the identity.
        """


class ConsistencyConfig(PluginConfig):
    """Settings of `consistency`."""

    judge: Path | None = input_path(None, "weights of the judge, a face recognizer other than that of the contexts")
    lowest: float = affects_result(0.3, "cosine to the identity below which an image is drawn again", gt=-1, le=1)
    attempts: int = affects_result(3, "how often an image is drawn again at most; then its best draw is taken", ge=1)
    reference: Literal["center", "context"] = affects_result(
        "center", "center of the identity's images, or its context, where the judge is the recognizer behind contexts"
    )
    center_images: int = affects_result(8, "images whose mean is the center, the first of each identity", ge=2)

    @field_validator("reference", mode="before")
    @classmethod
    def _american_spelling(cls, value: Any) -> Any:
        return "center" if value == "centre" else value  # earlier releases


@register(
    "sample_filter",
    "consistency",
    Card(
        about="Draw an image again while its embedding by a judge is far from the other images, or the context, of its"
        " identity; up to (1 + attempts) times the network evaluations.",
        paper="idea: Vec2Face+, arXiv:2507.17192",
    ),
)
class Consistency:
    """Scores images by the cosine to their identity."""

    def __init__(self, cfg: ConsistencyConfig) -> None:
        self.judge, self.attempts, self.lowest = cfg.judge, cfg.attempts, cfg.lowest
        self._reference, self._center_images = cfg.reference, cfg.center_images

    def check(self, per_id: int, judge: str, embedder: str | None) -> None:
        """Refuse centers of too few images and contexts of another recognizer; see `SampleFilter.check`."""
        if self._reference == "center" and per_id < self._center_images:
            raise UserError(
                f"filter.center_images is {self._center_images}, but an identity has {per_id} images (per_id);"
                f" give filter.center_images={max(per_id, 2)}"
            )
        if self._reference == "context":
            sources = {"filter.reference=context": embedder, "the judge": judge}
            require_same_embedder(sources, "use filter.reference=center")

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
