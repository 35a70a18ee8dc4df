"""Loss, gradients and validation of learning a teacher's embeddings, over groups of images; see `bn_groups`.

    loss = mean over images of (1 - cos(s, t)) + weight * mean over pairs of (cos(s_i, s_j) - cos(t_i, t_j))^2

s is the student's embedding of an altered view of a photo, t the teacher's of the photo itself. The pairs are those
of different images in one group: the relations of Park et al. 2019, "Relational Knowledge Distillation",
arXiv:1904.05068, Eq. 2.
"""

# Differs from Park et al. 2019: relations are cosines compared by their squared difference, as contexts are compared
# by cosine; there they are distances over their mean, and angles of triplets, under a Huber loss.

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facesyn_cli.training.bn_groups import ImageGroup
from facesyn_cli.training.group_passes import GroupPasses

_ROWS = 1024  # of a block of cosines


@dataclass(frozen=True)
class TaughtGroup(ImageGroup):
    """A group of images with their targets.

    Args:
        targets: (N, E) unit embeddings of the teacher.
    """

    targets: Tensor


@dataclass
class Distiller:
    """A student in training.

    Args:
        student: Pixels (N, 3, side, side) to embeddings (N, E).
        seed: Seed of its dropout.
        batch_size: Images of the global batch; the loss is a mean over them.
        precision: fp32, bf16 or fp16.
        relational_weight: Factor of the relational term.
        groups_per_pass: Most groups of a forward and backward pass.
    """

    student: nn.Module
    seed: int
    batch_size: int
    precision: str
    relational_weight: float
    groups_per_pass: int = 1

    def __post_init__(self) -> None:
        self.passes = GroupPasses(self.student, self.groups_per_pass)

    def accumulate(
        self, groups: Sequence[TaughtGroup], step: int, scale: float | Tensor = 1.0,
        last_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Tensor:
        """Add this process's part of the gradient of the global batch's loss to all `.grad`.

        Args:
            groups: The groups of this process.
            step: Number of the step, 0-based; seeds the dropout.
            scale: Factor of the gradient (fp16).
            last_pass: Context of the last backward pass.

        Returns:
            (3,) this process's part of the loss, of the mean cosine and of the relational term.
        """
        figures = torch.zeros(3, device=groups[0].targets.device)
        for places in self.passes.cut(len(groups)):
            part = [groups[place] for place in places]
            total = torch.zeros((), device=figures.device)
            for group, embeddings in zip(
                part, self.passes.embed(part, self.precision, self.seed, step), strict=True
            ):
                share = len(group.targets) / self.batch_size
                embeddings = F.normalize(embeddings, dim=1)
                cosine = (embeddings * group.targets).sum(1).mean()
                loss = 1 - cosine
                relational = torch.zeros_like(loss)
                if self.relational_weight:
                    relational = relational_loss(embeddings, group.targets)
                    loss = loss + self.relational_weight * relational
                total = total + loss * share
                figures += share * torch.stack([loss.detach(), cosine.detach(), relational.detach()])
            with last_pass() if places.stop == len(groups) else nullcontext():
                (total * scale).backward()
        return figures


def relational_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines of all pairs of different rows.

    Args:
        embeddings: (N, E) of length 1.
        targets: (N, E) of length 1.
    """
    count = len(embeddings)
    difference = embeddings @ embeddings.T - targets @ targets.T
    others = 1 - torch.eye(count, device=difference.device)  # a row with itself has cosine 1 on both sides
    return (difference * others).square().sum() / max(1, count * (count - 1))


def agreement(embeddings: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the mean cosine to the teacher, and how often a photo finds its own teacher embedding first.

    Args:
        embeddings: (N, E) of the student, of any length but 0.
        targets: (N, E) unit embeddings of the teacher, row by row.

    Returns:
        `cosine`, and `rank1`: the share of rows whose own target is nearest among all targets, ties counted as found.
    """
    embeddings = F.normalize(embeddings.double(), dim=1)
    targets = targets.double()
    cosines, found = [], 0
    for rows in torch.arange(len(targets)).split(_ROWS):
        scores = embeddings[rows] @ targets.T                              # (rows, N)
        own = scores[torch.arange(len(rows)), rows]
        found += int((own >= scores.max(1).values).sum())
        cosines.append(own)
    return {"cosine": torch.cat(cosines).mean().item(), "rank1": found / len(targets)}
