"""The images of an identity that look like one person: the largest cluster of their embeddings.

DBSCAN (Ester et al. 1996): an image with at least `samples` images within `distance`, itself included, is a core;
cores within `distance` of each other are of one cluster, which other images within `distance` of a core join. Distances
are 1 - cosine. Since identities differ in how far their images spread, the distance is adapted to each: it starts at
`distance` and moves by `step`, up where the largest cluster holds less than `lowest` of the images and down where it
holds more than `highest`, at most `rounds` times (winner of DataCV 2025, who cleans sets of generated faces so).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from facesyn_cli.plugins.settings import Settings


class ClusterSettings(Settings):
    """How the largest cluster is found."""

    distance: float = Field(0.6, gt=0, le=2, description="1 - cosine of two images up to which they are neighbors")
    step: float = Field(0.02, gt=0, description="by how much the distance moves in a round")
    rounds: int = Field(10, ge=0, description="rounds in which the distance moves, at most")
    lowest: float = Field(0.5, ge=0, le=1, description="share of the images below which the distance grows")
    highest: float = Field(0.8, ge=0, le=1, description="share of the images above which the distance shrinks")
    samples: int = Field(2, ge=1, description="images within the distance that make a core, itself included")

    @model_validator(mode="after")
    def _is_a_range(self) -> ClusterSettings:
        if self.lowest > self.highest:
            raise ValueError(f"lowest ({self.lowest}) must not be above highest ({self.highest})")
        return self


def largest_cluster(vectors: NDArray, settings: ClusterSettings) -> NDArray[np.bool_]:
    """Return (N,) bool, which of the unit embeddings (N, D) of an identity are in its largest cluster.

    Of several largest ones, that of the first image. No image is in it where there is no core.
    """
    distances = 1 - np.asarray(vectors, dtype=np.float64) @ np.asarray(vectors, dtype=np.float64).T
    np.fill_diagonal(distances, 0)
    limit = settings.distance
    found = _largest(distances <= limit, settings.samples)
    for _ in range(settings.rounds):
        share = found.mean()
        if settings.lowest <= share <= settings.highest:
            break
        limit += settings.step if share < settings.lowest else -settings.step
        found = _largest(distances <= limit, settings.samples)
    return found


def _largest(near: NDArray[np.bool_], samples: int) -> NDArray[np.bool_]:
    """Return the largest cluster of images with neighbors `near`, (N, N) bool -> (N,) bool."""
    is_core, best = near.sum(axis=1) >= samples, np.zeros(len(near), dtype=bool)
    free = is_core.copy()
    while free.any():
        cluster = np.zeros(len(near), dtype=bool)
        cluster[free.argmax()] = True
        while True:  # all cores that a chain of neighbors reaches
            more = near[cluster].any(axis=0) & is_core
            if (more <= cluster).all():
                break
            cluster |= more
        free &= ~cluster
        cluster |= near[cluster].any(axis=0)
        if cluster.sum() > best.sum():
            best = cluster
    return best
