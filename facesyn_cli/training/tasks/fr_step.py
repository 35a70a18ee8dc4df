"""Loss and gradients of recognition training over groups of images; see `bn_groups`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facesyn_cli.models.heads.margin import Head
from facesyn_cli.training.bn_groups import embed_group
from facesyn_cli.training.classifier import Classifier, Group


@dataclass(frozen=True)
class Recognizer:
    """A backbone and a head in training.

    Args:
        backbone: Pixels (N, 3, 112, 112) to embeddings (N, E).
        classifier: Embeddings and labels to losses.
        seed: Seed of the dropout.
        batch_size: Images of the global batch; the loss is a mean over them.
        precision: Number format of the backbone: fp32, bf16 or fp16.
        all_reduce: Returns the sum of a tensor over all processes.
    """

    backbone: nn.Module
    classifier: Classifier
    seed: int
    batch_size: int
    precision: str
    all_reduce: Callable[[Tensor], Tensor]

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
        for place, group in enumerate(groups):
            embeddings = self._embed(group, step, group.number == 0) if kept is None else kept
            found = self.classifier.loss(embeddings, place)
            with last_pass() if group is groups[-1] else nullcontext():
                (found.objective / self.batch_size * scale).backward()
            figures += torch.stack([found.loss, found.num_right.to(found.loss)]) / self.batch_size
        return figures

    def _observe(self, groups: Sequence[Group], step: int) -> Tensor | None:
        """Pass the statistics of the global batch to the head, which needs them before any loss.

        Embeddings of several groups are computed here and again for their gradients, because the graphs of a whole
        batch do not fit into memory; those of a single group are returned for reuse.
        """
        is_single = len(groups) == 1
        total = torch.zeros(self.head.num_statistics, device=groups[0].labels.device)
        for place, group in enumerate(groups):
            with torch.set_grad_enabled(is_single):
                embeddings = self._embed(group, step, is_single and group.number == 0)
            target = self.classifier.target_cosines(embeddings.detach(), place)
            with torch.no_grad():
                total += self.head.statistics(embeddings.detach(), target)
        self.head.observe(self.all_reduce(total), self.batch_size)
        return embeddings if is_single else None

    def _embed(self, group: Group, step: int, is_updated: bool) -> Tensor:
        return embed_group(self.backbone, group, self.precision, self.seed, step, is_updated)
