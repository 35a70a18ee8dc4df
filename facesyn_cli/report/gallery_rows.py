"""The figures by which the gallery sorts and filters the images of a set, all in the space of one judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.evaluation.identity_quality import loo_cosines
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.nearest import Sample


@dataclass(frozen=True)
class GalleryRows:
    """Images of whole identities with their figures; arrays have a value for each of N images.

    Args:
        rows: The images; those of one identity are adjacent.
        quality: Length of the embedding as the judge gives it; None where it is not known.
        to_center: Cosine to the center of the other images of the identity; NaN for a lone image.
        other: Number, in `names`, of the nearest other identity by its center; -1 where it was not computed.
        to_other: Cosine to that center.
        is_doubtful: The image is nearer to another identity than to its own.
        names: Identities of the whole set, of which the gallery may hold a part.
        training: Row of the nearest image of the reference; -1 where it was not computed or there is no reference.
        to_training: Cosine to that image.
        num_images: Images of the whole set.
    """

    rows: LabeledEmbeddings
    quality: NDArray[np.float32] | None
    to_center: NDArray[np.float64]
    other: NDArray[np.int64]
    to_other: NDArray[np.float32]
    is_doubtful: NDArray[np.bool_]
    names: list[str]
    training: NDArray[np.int64]
    to_training: NDArray[np.float32]
    num_images: int


def gallery_rows(
    whole: LabeledEmbeddings, lengths: dict[str, float], training: LabeledEmbeddings | None, most: int | None,
    max_pairs: int, seed: int,
) -> GalleryRows:
    """Return the images of a gallery.

    Args:
        whole: The set.
        lengths: Key -> length of the embedding; empty where they are not known.
        training: The reference, or None.
        most: Images at most, whole identities drawn at random; None: all.
        max_pairs: Products to compute at most for the neighbors in the set, and in the reference; of more images, a
            random sample has neighbors.
        seed: Seed of both draws.
    """
    chosen = _choose(whole, most, seed)
    sample = Sample(max_pairs, seed)
    rows, owner = whole.part(chosen), whole.owner[chosen]
    own = loo_cosines(whole)[chosen]
    everyone = np.arange(len(whole.identities))
    near = sample.near(rows.vectors, owner, whole.centers, everyone)
    other, to_other = _spread(len(rows.keys), near.queries, near.where, near.cosines)
    found, score = _spread(len(rows.keys), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    if training is not None:
        near = sample.near(rows.vectors, owner, training.vectors)
        found, score = _spread(len(rows.keys), near.queries, near.where, near.cosines)
    quality = np.array([lengths[key] for key in rows.keys], np.float32) if lengths else None
    is_doubtful = np.isfinite(own) & (other >= 0) & (to_other > own)
    return GalleryRows(
        rows, quality, own, other, to_other, is_doubtful, whole.identities, found, score, len(whole.keys)
    )


def _choose(whole: LabeledEmbeddings, most: int | None, seed: int) -> NDArray[np.bool_]:
    """Return which images to show, (N,): all, or those of random identities while they fit; at least one identity."""
    if most is None or len(whole.keys) <= most:
        return np.ones(len(whole.keys), bool)
    order = np.random.default_rng(seed).permutation(len(whole.identities))
    count = max(1, int((np.cumsum(whole.sizes[order]) <= most).sum()))
    return np.isin(whole.owner, order[:count])


def _spread(
    size: int, queries: NDArray[np.int64], where: NDArray[np.int64], cosines: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return neighbors and cosines for all images from those of some; -1 and NaN for the others."""
    rows, scores = np.full(size, -1, np.int64), np.full(size, np.nan, np.float32)
    rows[queries], scores[queries] = where, np.where(where >= 0, cosines, np.nan)
    return rows, scores
