"""Loss and gradients of recognition training over groups of images; see `bn_groups`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facesyn_cli.models.heads.margin import Head
from facesyn_cli.training.classifier import Classifier, Group
from facesyn_cli.training.group_passes import GroupPasses


@dataclass
class Recognizer:
    """A backbone and a head in training.

    Args:
        backbone: Pixels (N, 3, 112, 112) to embeddings (N, E).
        classifier: Embeddings and labels to losses.
        seed: Seed of the dropout.
        batch_size: Images of the global batch; the loss is a mean over them.
        precision: Number format of the backbone: fp32, bf16 or fp16.
        all_reduce: Returns the sum of a tensor over all processes.
        groups_per_pass: Most groups of a forward and backward pass.
    """

    backbone: nn.Module
    classifier: Classifier
    seed: int
    batch_size: int
    precision: str
    all_reduce: Callable[[Tensor], Tensor]
    groups_per_pass: int = 1

    def __post_init__(self) -> None:
        self.passes = GroupPasses(self.backbone, self.groups_per_pass)

    @property
    def head(self) -> Head:
        """The head of the classifier."""
        return self.classifier.head

    def accumulate(
        self, groups: Sequence[Group], step: int, scale: float | Tensor = 1.0,
        last_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Tensor:
        """Add this process's part of the gradient of the global batch's mean loss to all `.grad`.

        Args:
            groups: The groups of this process.
            step: Number of the step, 0-based; seeds the dropout and random margins.
            scale: Factor of the gradient (fp16).
            last_pass: Context of the last backward pass.

        Returns:
            (2,) this process's part of the mean loss, and of the share of images whose class center is the
            nearest one.
        """
        self.classifier.begin(groups, step)
        kept = self._observe(groups, step) if self.head.num_statistics else None
        figures = torch.zeros(2, device=groups[0].labels.device)
        for places in self.passes.cut(len(groups)):
            embeddings = self._embed(groups, places, step) if kept is None else kept
            found = [self.classifier.loss(part, place) for part, place in zip(embeddings, places, strict=True)]
            with last_pass() if places.stop == len(groups) else nullcontext():
                (sum(part.objective for part in found) / self.batch_size * scale).backward()
            for part in found:
                figures += torch.stack([part.loss, part.num_right.to(part.loss)]) / self.batch_size
        return figures

    def _observe(self, groups: Sequence[Group], step: int) -> tuple[Tensor, ...] | None:
        """Pass the statistics of the global batch to the head, which needs them before any loss.

        Embeddings of several passes are computed here and again for their gradients, because the graphs of a whole
        batch do not fit into memory; those of a single pass are returned for reuse.
        """
        cut = self.passes.cut(len(groups))
        is_single = len(cut) == 1
        total = torch.zeros(self.head.num_statistics, device=groups[0].labels.device)
        for places in cut:
            with torch.set_grad_enabled(is_single):
                embeddings = self._embed(groups, places, step, is_updated=is_single)
            for part, place in zip(embeddings, places, strict=True):
                target = self.classifier.target_cosines(part.detach(), place)
                with torch.no_grad():
                    total += self.head.statistics(part.detach(), target)
        self.head.observe(self.all_reduce(total), self.batch_size)
        return embeddings if is_single else None

    def _embed(
        self, groups: Sequence[Group], places: range, step: int, is_updated: bool = True
    ) -> tuple[Tensor, ...]:
        own = [groups[place] for place in places]
        return self.passes.embed(own, self.precision, self.seed, step, is_updated)
