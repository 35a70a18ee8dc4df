"""Groups of images that BatchNorm normalizes together, divided over processes.

The global batch of B images is cut into consecutive groups of N. Every process runs its consecutive share of the
groups, one or several in a forward and backward pass (see `group_passes`), and accumulates the gradients. So the result
does not depend on the number of processes: the published 8 processes x 64 images are 8 groups of 64 on 1, 2, 4 or 8
processes. Running statistics are updated by the first group of each step alone, as in data-parallel training that
broadcasts the buffers of rank 0.

Ioffe and Szegedy 2015, arXiv:1502.03167 (batch normalization).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError


def num_groups(batch_size: int, norm_batch_size: int, num_processes: int) -> int:
    """Return how many groups the global batch has.

    Args:
        batch_size: Images of the global batch.
        norm_batch_size: Images of a group; one larger than the batch means the whole batch.
        num_processes: Processes that share the groups.

    Raises:
        UserError: The batch does not divide into groups, or the groups not over the processes.
    """
    size = min(norm_batch_size, batch_size)
    if batch_size % size:
        raise UserError(
            f"batch_size {batch_size} is not a multiple of norm_batch_size {size}; "
            f"use batch_size {batch_size // size * size} or {(batch_size // size + 1) * size}"
        )
    count = batch_size // size
    if count % num_processes:
        works = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f"batch_size {batch_size} has {count} groups of norm_batch_size {size}, which do not divide over "
            f"{num_processes} processes; start {', '.join(map(str, works))} processes or use batch_size "
            f"{size * num_processes * max(1, round(count / num_processes))}"
        )
    return count


def group_seed(seed: int, step: int, group: int) -> int:
    """Return the seed of the dropout of one group in one step; it does not depend on the process."""
    return int(np.random.SeedSequence([seed, step, group]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def running_statistics(module: nn.Module, is_updated: bool) -> Iterator[None]:
    """In this block BatchNorm layers in training mode update their running statistics only if `is_updated`.

    They normalize with the statistics of their input in either case.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not is_updated:
        for layer in norms:
            layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True


@dataclass(frozen=True)
class ImageGroup:
    """Images, or their latents, that BatchNorm normalizes together.

    Args:
        number: Place in the global batch, 0-based.
        inputs: (N, side, side, 3) uint8 pixels, or (N, C, h, w) float32 latents.
    """

    number: int
    inputs: Tensor


@torch.no_grad()
def copy_from_first(module: nn.Module, processes: Processes) -> None:
    """Copy the floating-point buffers (running statistics) of the first process to all others. A collective."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(processes.sum(buffer if processes.is_first else torch.zeros_like(buffer)))


def use_global_norms(module: nn.Module, all_reduce: Callable[[Tensor], Tensor]) -> None:
    """Make all BatchNorm layers normalize with the statistics of the inputs of all processes.

    torch's SyncBatchNorm runs on GPUs only; this one runs on CPUs too.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = _GlobalNorm(layer, all_reduce)


class _GlobalNorm:
    """The forward pass of a BatchNorm layer over all processes (each with an input of the same shape)."""

    def __init__(self, layer: _BatchNorm, all_reduce: Callable[[Tensor], Tensor]) -> None:
        self.layer, self.all_reduce = layer, all_reduce
        self.num_processes = 0.0  # not known yet

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.training:
            return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            axes = [axis for axis in range(x.ndim) if axis != 1]
            shape = [1, -1] + [1] * (x.ndim - 2)
            if not self.num_processes:  # counted once: the sum waits for the device
                self.num_processes = self.all_reduce(torch.ones((), device=x.device)).item()
            count = self.num_processes * x.numel() / x.shape[1]
            mean = _AllReduce.apply(wide.sum(axes), self.all_reduce) / count                      # (C,)
            centered = wide - mean.view(shape)
            variance = _AllReduce.apply(centered.square().sum(axes), self.all_reduce) / count      # (C,)
            y = centered * (variance + layer.eps).rsqrt().view(shape)
            if layer.affine:
                y = y * layer.weight.view(shape) + layer.bias.view(shape)
        if layer.track_running_stats:
            with torch.no_grad():
                layer.num_batches_tracked += 1
                layer.running_mean.lerp_(mean, layer.momentum)
                layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
        return y.to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """A sum over processes; its gradient is the sum over processes of the gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.all_reduce = all_reduce
        return all_reduce(x.contiguous())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.all_reduce(gradient.contiguous()), None
