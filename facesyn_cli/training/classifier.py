"""The classifier of recognition training: loss and accuracy of groups of images under a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from facesyn_cli.models.heads.margin import Head
from facesyn_cli.training.bn_groups import ImageGroup


@dataclass(frozen=True)
class Group(ImageGroup):
    """A group of labeled images.

    Args:
        labels: (N,) integers.
        weights: (N,) factor of each image's loss.
    """

    labels: Tensor
    weights: Tensor


class GroupLoss(NamedTuple):
    """Loss and accuracy of the group at one place of this process's groups.

    Args:
        objective: Scalar; its gradients, added up over processes, are those of the sum of weighted losses.
        loss: Scalar without gradient, this process's part of that sum.
        num_right: Scalar, this process's part of the number of images whose class center is the nearest one.
    """

    objective: Tensor
    loss: Tensor
    num_right: Tensor


class Classifier(Protocol):
    """What a training step needs of a classifier, besides `head`.

    `begin` comes first in every step; then every process calls the other methods for the same places in the same order.
    """

    head: Head

    def begin(self, groups: Sequence[Group], step: int) -> None:
        """Prepare for a step with these groups of this process."""

    def target_cosines(self, embeddings: Tensor, place: int) -> Tensor:
        """Return the (N,) cosines of embeddings (N, E) with the centers of their own classes, without gradient."""

    def loss(self, embeddings: Tensor, place: int) -> GroupLoss:
        """Return the loss of the group `groups[place]`, whose embeddings are (N, E)."""


class WholeClassifier:
    """A head with all classes in every process.

    Args:
        head: The head, with its classes.
        seed: Seed of random margins.
    """

    def __init__(self, head: Head, seed: int) -> None:
        self.head, self.seed = head, seed

    def begin(self, groups: Sequence[Group], step: int) -> None:
        """Prepare for a step."""
        self._groups, self._step = groups, step

    def target_cosines(self, embeddings: Tensor, place: int) -> Tensor:
        """As of `Classifier`."""
        with torch.no_grad():
            return self.head.target_cosines(embeddings, self._groups[place].labels)

    def loss(self, embeddings: Tensor, place: int) -> GroupLoss:
        """As of `Classifier`."""
        group = self._groups[place]
        seed_margins(self.seed, self._step, group.number)
        logits, scores = self.head.logits_and_scores(embeddings, group.labels)
        losses = F.cross_entropy(logits, group.labels, reduction="none")
        if (extra := self.head.extra_losses(embeddings)) is not None:
            losses = losses + extra
        total = (group.weights * losses).sum()
        return GroupLoss(total, total.detach(), (scores.argmax(1) == group.labels).sum())


def seed_margins(seed: int, step: int, group: int) -> None:
    """Seed the random margins of a group of images, whatever was drawn before.

    Args:
        seed: Seed of the training.
        step: Number of the step, 0-based.
        group: Number of the group in the global batch.
    """
    entropy = np.random.SeedSequence([seed, step, group, 1])  # 1: other numbers than those of the dropout
    torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
