"""Photos joined with the embeddings of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.errors import UserError
from facesyn_cli.training.data_order import is_held_out
from facesyn_cli.training.tasks.ldm_inputs import evenly, having_embeddings


class NumberedFaces:
    """Photos for training whose label is their own number, which is the row of their target.

    Args:
        images: The set they belong to.
        entries: The photos.
    """

    def __init__(self, images: ImageSet, entries: Sequence[ImageEntry]) -> None:
        self._images, self.entries = images, list(entries)
        self.labels, self.num_classes = np.arange(len(self.entries), dtype=np.int32), len(self.entries)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._images.read(self.entries[index])

    def name_of(self, index: int) -> str:
        """Return the location of an image, for messages."""
        return f"{self.entries[index].location} in {self._images.path}"


@dataclass(frozen=True)
class TaughtFaces:
    """Photos and the teacher's embeddings of them.

    Args:
        train: Photos to train on.
        train_targets: (N, E) float32, their unit embeddings.
        held_out: Photos of other people, to validate with.
        held_out_targets: (M, E) float32, their unit embeddings.
        num_without: Photos that have no embedding and are left out.
    """

    train: NumberedFaces
    train_targets: Tensor
    held_out: NumberedFaces
    held_out_targets: Tensor
    num_without: int


def join_teacher(images: ImageSet, embeddings: EmbeddingSet, fraction: float, max_held_out: int) -> TaughtFaces:
    """Join photos and embeddings by key and hold some identities out.

    Args:
        images: The photos.
        embeddings: The teacher's, of these photos and possibly of others.
        fraction: About this share of the identities is held out; which ones depends on their names only.
        max_held_out: Most photos to validate with; photos of held-out identities beyond that are not used.

    Raises:
        UserError: No photo has an embedding, or fewer than two are left to train on.
    """
    entries = having_embeddings(images, embeddings)
    train = [entry for entry in entries if not is_held_out(entry.identity, fraction)]
    say_if_not_square(images.path, lambda row: images.read(entries[row]), len(entries))
    if len(train) < 2:
        raise UserError(
            f"{len(train)} of {len(entries)} images are left to train on, at least 2 are needed; lower "
            f"validation_fraction={fraction:g}"
        )
    held_out = evenly([entry for entry in entries if is_held_out(entry.identity, fraction)], max_held_out)
    targets = [torch.from_numpy(embeddings.join([entry.key for entry in part])) for part in (train, held_out)]
    return TaughtFaces(
        NumberedFaces(images, train), targets[0], NumberedFaces(images, held_out), targets[1],
        len(images.entries) - len(entries),
    )
