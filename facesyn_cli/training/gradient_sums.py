"""Sums of gradients over processes, computed while the backward pass runs.

Parameters are divided into buckets once, in reverse order, which is about the order in which a backward pass finishes
their gradients. The sum of a bucket begins as soon as the last of its gradients has arrived, and bucket after bucket
in all processes. A step of several backward passes sums once, in the last one.

DistributedDataParallel does not fit: it changes its buckets after the first step (or searches the graph in every one),
so that a resumed training rounds differently from an uninterrupted one; it needs one wrapping module, while a step of
ours runs a network, a head and a loss in several passes; it averages. Here buckets are a function of the parameters,
and a step says only which backward pass is its last. A compiled network hands over all gradients at the end of its
backward pass; there nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from facesyn_cli.distributed import Processes

_BUCKET = 1 << 23  # numbers of a bucket, 32 MiB of float32


class GradientSums:
    """Replaces the gradients of parameters by their sums over processes; does nothing in a single process.

    A training step runs its last backward pass in `last_pass`, and then calls `finish`. Without `last_pass` the result
    is the same, and nothing overlaps.

    Args:
        parameters: The same in all processes, each with the same shape, all trainable.
        processes: The processes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], processes: Processes) -> None:
        self.processes, self.buckets = processes, list[_Bucket]()
        self.is_last_pass, self.num_begun = False, 0
        if processes.world_size > 1:
            self.buckets = [_Bucket(part) for part in _divided(parameters[::-1])]
            for bucket in self.buckets:
                for place, parameter in enumerate(bucket.parameters):
                    parameter.register_post_accumulate_grad_hook(partial(self._arrive, bucket, place))

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """In this block the one backward pass runs after which the gradients of this step are complete."""
        self.is_last_pass = True
        try:
            yield
        finally:
            self.is_last_pass = False

    @torch.no_grad()
    def finish(self) -> None:
        """Make every `.grad` the sum over all processes. A collective.

        A parameter without a gradient in this process gets the sum of the others; one without a gradient in all
        processes keeps none.
        """
        if not self.buckets:
            return
        for bucket in self.buckets:
            for place, parameter in enumerate(bucket.parameters):
                if place not in bucket.arrived:
                    bucket.take(place, parameter)
        self._begin()
        used = self.processes.any_of([has for bucket in self.buckets for has in bucket.has_gradient()])
        is_used = iter(used)
        for bucket in self.buckets:
            bucket.end([next(is_used) for _ in bucket.parameters])
        self.num_begun = 0

    @torch.no_grad()
    def _arrive(self, bucket: _Bucket, place: int, parameter: Tensor) -> None:
        if not self.is_last_pass:
            return
        if place in bucket.arrived:
            raise RuntimeError("a second backward pass runs in `last_pass`; its gradients would be lost")
        bucket.take(place, parameter)
        self._begin()

    def _begin(self) -> None:
        """Begin the sums of full buckets, in their order."""
        while self.num_begun < len(self.buckets) and self.buckets[self.num_begun].is_full:
            bucket = self.buckets[self.num_begun]
            bucket.work = self.processes.begin_sum(bucket.flat)
            self.num_begun += 1


class _Bucket:
    """Gradients that are summed together.

    Attributes:
        parameters: Whose gradients.
        flat: All of them, one after the other.
        arrived: Place -> whether this process has a gradient, of those that lie in `flat`.
        work: The sum that has begun.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters, self.arrived = list(parameters), dict[int, bool]()
        self.flat = torch.cat([torch.zeros_like(p).flatten() for p in parameters])
        self.work: torch.distributed.Work | None = None
        parts = self.flat.split([p.numel() for p in parameters])
        self.views = [  # in the memory layout that the optimizer expects
            part.as_strided(p.shape, torch.empty_like(p, device="meta").stride())
            for part, p in zip(parts, parameters, strict=True)
        ]

    @property
    def is_full(self) -> bool:
        return len(self.arrived) == len(self.parameters)

    def take(self, place: int, parameter: Tensor) -> None:
        """Move a gradient, zeros if there is none, into the bucket."""
        self.arrived[place] = parameter.grad is not None
        if parameter.grad is None:
            self.views[place].zero_()
        else:
            self.views[place].copy_(parameter.grad)
        parameter.grad = self.views[place]

    def has_gradient(self) -> list[bool]:
        return [self.arrived[place] for place in range(len(self.parameters))]

    def end(self, is_used: Sequence[bool]) -> None:
        """Wait for the sum; take the gradients of unused parameters away."""
        assert self.work is not None
        self.work.wait()
        for parameter, used in zip(self.parameters, is_used, strict=True):
            if not used:
                parameter.grad = None
        self.work, self.arrived = None, {}


def _divided(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters in buckets of one type and at most `_BUCKET` numbers."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        size = sum(p.numel() for p in bucket) + parameter.numel()
        if bucket and (size > _BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
