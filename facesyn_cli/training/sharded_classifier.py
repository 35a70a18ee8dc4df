"""A classifier whose classes are divided over processes, and Partial FC.

Process r of n holds the class centers of one range of the K classes. Groups are processed in rounds: in round j every
process embeds its j-th group of N images, embeddings are gathered from all processes, and each process computes the
(n N, K / n) cosines with its own classes, as many numbers as the (N, K) of a whole classifier. With the maximum m and
the sum taken over all classes, which needs one number per image from every process,

    loss = log(sum_j exp(l_j - m)) - (l_y - m),  d loss / d l_j = softmax_j - [j = y]

is the softmax cross-entropy of all classes, and its gradient needs no further exchange. An et al. 2022,
arXiv:2203.15565, Section 3.1, describe this as model parallelism.

Partial FC (the same, Section 3.2, and An et al. 2021, arXiv:2010.05222): a step uses a random share of the classes, in
which those of the images of its batch always are. Other centers are not read, and neither they nor their optimizer
state change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.heads.class_centers import draw_centers, paired_cosines
from facesyn_cli.models.heads.class_range import class_ranges
from facesyn_cli.models.heads.margin import Head, MarginHead
from facesyn_cli.training.classifier import Group, GroupLoss, seed_margins
from facesyn_cli.training.optimization import OptimizerSettings


def check_shardable(head: Head, name: str) -> None:
    """Refuse a head whose classes cannot be divided.

    Raises:
        UserError: Its logits are not cosines with a margin, or it has further parameters.
    """
    own = ("forward", "scores", "cosines", "with_classes", "logits_and_scores", "logits", "target_cosines")
    if not isinstance(head, MarginHead) or head.overrides(*own) or any(True for _ in head.parameters()):
        raise UserError(f"classifier.sharded=true needs a head that puts a margin on cosines, such as arcface; {name} "
                        "computes its logits in another way")


class ShardedClassifier:
    """This process's classes of a classifier; see `Classifier` for the methods of a step, all of them collectives.

    `head.kernel` (E, K_r) holds the centers of this process's classes; in memory the numbers of a class are adjacent.
    Between `begin` and the end of `updating` it holds only the sampled ones.

    Args:
        head: A head without classes that passes `check_shardable`.
        num_classes: Number K of all classes.
        embedding_size: Width E of an embedding.
        seed: Seed of the initial centers, of random margins and of the sampled classes.
        processes: The processes.
        sample_rate: Share of the classes that a step uses; None: all.

    Raises:
        UserError: There are fewer classes than processes.
    """

    def __init__(
        self, head: MarginHead, num_classes: int, embedding_size: int, seed: int, processes: Processes,
        sample_rate: float | None = None,
    ) -> None:
        if num_classes < processes.world_size:
            raise UserError(f"{num_classes} identities cannot be divided over {processes.world_size} processes; start "
                            "fewer, or set classifier.sharded=false")
        self.head, self.seed, self.processes, self.sample_rate = head, seed, processes, sample_rate
        self.classes = class_ranges(num_classes, processes.world_size)[processes.rank]
        centers = torch.empty(self.classes.width, embedding_size)
        draw_centers(centers.t(), seed, self.classes)
        head.kernel = nn.Parameter(centers.to(processes.device).t())
        self._sampled: Tensor | None = None  # rows of `_centers` that the kernel holds; None: all

    def begin(self, groups: Sequence[Group], step: int) -> None:
        """Gather the labels and weights of all processes; with a sample rate, put the sampled centers into the head."""
        processes, classes = self.processes, self.classes
        if self._sampled is None:
            self._centers = self.head.kernel.data.t()                                               # (K_r, E)
        self._step, self._first_number, self._num_groups = step, groups[0].number, len(groups)
        labels = processes.gather(torch.stack([group.labels for group in groups])[None])            # (n, G, N)
        self._weights = processes.gather(torch.stack([group.weights for group in groups])[None])    # (n, G, N)
        is_own = (labels >= classes.start) & (labels < classes.stop)
        self._rows = torch.where(is_own, labels - classes.start, -1)
        self._columns = self._rows
        if self.sample_rate is not None:
            chosen = sampled_classes(classes.total, self.sample_rate, labels.cpu().numpy(), self.seed, step)
            own = chosen[(chosen >= classes.start) & (chosen < classes.stop)] - classes.start
            self._sampled = torch.from_numpy(own).to(labels.device)
            self._columns = torch.where(is_own, torch.searchsorted(self._sampled, self._rows), -1)
            self.head.kernel.data = self._centers[self._sampled].t()

    def target_cosines(self, embeddings: Tensor, place: int) -> Tensor:
        """As of `Classifier`."""
        with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
            gathered, rows = self.processes.gather(embeddings), self._rows[:, place].flatten()
            cosines = paired_cosines(gathered, self._centers[rows.clamp(min=0)])
            cosines = self.processes.sum(torch.where(rows >= 0, cosines, 0.0))
            return cosines.split(len(embeddings))[self.processes.rank]

    def loss(self, embeddings: Tensor, place: int) -> GroupLoss:
        """As of `Classifier`; the objective holds the losses of the groups of all processes at this place."""
        processes, head, size = self.processes, self.head, len(embeddings)
        columns, weights = self._columns[:, place], self._weights[:, place]                         # (n, N)
        with torch.autocast(embeddings.device.type, enabled=False):
            gathered = _Gather.apply(embeddings.to(head.kernel.dtype), processes)                   # (n N, E)
            cosines = head.cosines(gathered)                                                        # (n N, K_r)
            target = _Sum.apply(_picked(cosines, columns.flatten()), processes)[:, None]            # (n N, 1)
            logits = []
            parts = zip(cosines.split(size), target.split(size), columns, gathered.split(size), strict=True)
            for rank, (cosine, own, column, embedding) in enumerate(parts):
                seed_margins(self.seed, self._step, self._number(rank, place))
                is_target = column[:, None] == torch.arange(cosine.shape[1], device=column.device)  # (N, K_r)
                logits.append(head.logits(cosine, own, is_target, embedding))                       # n x (N, K_r)
            best, nearest = _largest(cosines.detach())
            largest = torch.cat([_largest(part.detach())[0] for part in logits])
            largest, best_of_all = processes.max(torch.stack([largest, best]))
            losses = _CrossEntropy.apply(processes, largest, columns, *logits)                      # (n N,)
        losses = weights * losses.view_as(weights)                                                  # (n, N)
        objective, loss = losses.sum(), losses[processes.rank].sum()
        if (extra := head.extra_losses(embeddings)) is not None:
            more = (weights[processes.rank] * extra).sum()
            objective, loss = objective + more, loss + more
        is_right = (nearest == columns.flatten()) & (best >= best_of_all)
        return GroupLoss(objective, loss.detach(), is_right.sum())

    @contextmanager
    def updating(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The context of the optimizer's step, which sees the sampled centers and their state alone."""
        if self._sampled is None:
            yield
            return
        kernel, sampled = self.head.kernel, self._sampled
        state = optimizer.state[kernel]
        whole = {name: value for name, value in state.items() if torch.is_tensor(value) and value.ndim == 2}
        state.update({name: value.t()[sampled].t() for name, value in whole.items()})
        try:
            yield
        finally:
            for name, value in list(state.items()):
                if torch.is_tensor(value) and value.ndim == 2:
                    rows = whole[name].t() if name in whole else torch.zeros_like(self._centers, dtype=value.dtype)
                    state[name] = rows.index_copy_(0, sampled, value.t()).t()
            self._centers.index_copy_(0, sampled, kernel.data.t())
            kernel.grad = None
            kernel.data, self._sampled = self._centers.t(), None

    def _number(self, rank: int, place: int) -> int:
        """Return the number in the global batch of a group of another process."""
        return self._first_number + place + (rank - self.processes.rank) * self._num_groups


def classifier_memory(
    num_classes: int, embedding_size: int, group_size: int, num_processes: int, optimizer: OptimizerSettings,
    is_sharded: bool, sample_rate: float | None,
) -> dict[str, float]:
    """Return an estimate of what the classifier takes in one process, for a plan.

    Returns:
        `classes_per_process`, and `classifier_mib`: centers and optimizer state, and during a step the sampled ones of
        both, the gradient and two tensors of its size, and six of the size of the logits.
    """
    width = class_ranges(num_classes, num_processes)[0].width if is_sharded else num_classes
    moments = int(optimizer.momentum > 0) if optimizer.name == "sgd" else 2
    active, copies = (width, 0) if sample_rate is None else (math.ceil(width * sample_rate), 1 + moments)
    values = embedding_size * ((1 + moments) * width + (3 + copies) * active)
    values += 6 * active * group_size * (num_processes if is_sharded else 1)
    return {"classes_per_process": width, "classifier_mib": round(4 * values / 2**20, 1)}


def sampled_classes(
    num_classes: int, rate: float, labels: NDArray[np.integer], seed: int, step: int
) -> NDArray[np.int64]:
    """Return the classes that a step uses, rising: those of its images, and others up to a share of all.

    Args:
        num_classes: Number of all classes.
        rate: The share; a batch with more classes than that uses these only.
        labels: Labels of the global batch, of any shape.
        seed: Seed of the training.
        step: Number of the step, 0-based.
    """
    # Differs from An et al. 2022: they draw in every process among its own classes, which depends on the number of
    # processes; this draw depends on seed and step.
    priorities = np.random.default_rng([seed, step, 1]).random(num_classes)
    priorities[labels] = 2.0
    count = max(round(rate * num_classes), int((priorities == 2.0).sum()))
    return np.sort(np.argpartition(priorities, num_classes - count)[num_classes - count :])


def _picked(values: Tensor, columns: Tensor) -> Tensor:
    """Return the (B,) values of (B, K) in the given columns (B,); 0 where the column is -1."""
    if not values.shape[1]:
        return values.sum(1)
    return torch.where(columns >= 0, values.gather(1, columns.clamp(min=0)[:, None])[:, 0], 0.0)


def _largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of (B, K) values and their columns, (B,) each; of no values -inf and column -2."""
    if not values.shape[1]:
        return values.new_full((len(values),), -torch.inf), torch.full((len(values),), -2, device=values.device)
    return values.max(1)


class _Gather(torch.autograd.Function):
    """The (n N, E) rows of all processes; the gradient of this process's rows is summed over processes."""

    @staticmethod
    def forward(ctx, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes, ctx.size = processes, len(rows)
        return processes.gather(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.sum(gradient).split(ctx.size)[ctx.processes.rank], None


class _Sum(torch.autograd.Function):
    """A sum over processes; its gradient is the sum over processes of the gradients."""

    @staticmethod
    def forward(ctx, values: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.sum(gradient), None


class _CrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy (n N,) over the classes of all processes, from the n parts (N, K_r) of this one's logits.

    Further arguments: the processes, the largest logit (n N,) over all classes, and the column (n, N) of the label, -1
    where another process holds the class. The losses are the same in all processes.
    """

    @staticmethod
    def forward(ctx, processes: Processes, largest: Tensor, columns: Tensor, *logits: Tensor) -> Tensor:
        powers = [(part - most[:, None]).exp_() for part, most in zip(logits, largest.view_as(columns), strict=True)]
        sums = torch.cat([part.sum(1) for part in powers])
        own = torch.cat([_picked(part, column) for part, column in zip(logits, columns, strict=True)])
        sums, target = processes.sum(torch.stack([sums, own]))
        for part, total in zip(powers, sums.view_as(columns), strict=True):
            part /= total[:, None]
        ctx.save_for_backward(columns, *powers)
        return sums.log() - (target - largest)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, *softmax = ctx.saved_tensors
        for part, column, factor in zip(softmax, columns, gradient.view_as(columns), strict=True):
            part *= factor[:, None]  # in place: the graph of a round is used once
            if part.shape[1]:
                part.scatter_add_(1, column.clamp(min=0)[:, None], torch.where(column >= 0, -factor, 0.0)[:, None])
        return None, None, None, *softmax
