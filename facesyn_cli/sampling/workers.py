"""How many batches are computed at once, and of how many images: one on a GPU, one per core on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from accelerate.utils import find_executable_batch_size

from facesyn_cli.data.ordered_pool import usable_cores
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError

_LARGEST = 512           # images; a GPU is saturated long before
_SHARE_OF_MEMORY = 0.8   # that the search may take, so that a batch still fits when memory is fragmented


def num_workers(wanted: int | None, device: torch.device, num_processes: int) -> int:
    """Return how many batches to compute at once.

    Args:
        wanted: The user's setting; None: on a CPU as many as this process has cores for.
        device: Where they are computed; a GPU computes one batch at a time.
        num_processes: Processes on this machine, where the launcher does not set LOCAL_WORLD_SIZE.
    """
    if device.type != "cpu":
        return 1
    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return wanted or max(1, usable_cores() // neighbors)


def choose_batch_size(
    wanted: int | str | None,
    device: torch.device,
    num_images: int,
    try_batch: Callable[[int], object],
    processes: Processes | None = None,
) -> int:
    """Return the number of images in a batch, the same in all processes; a collective where it is `auto`.

    Args:
        wanted: The user's setting: a number; None: 8 on a CPU, 64 on a GPU; auto: the largest power of two up to 512
            that a GPU has memory for, 8 on a CPU.
        device: Where batches are computed.
        num_images: Images of the set; a batch never has more.
        try_batch: Evaluates denoiser and decoder once on so many images.
        processes: All of the run; None: this one alone.

    Raises:
        UserError: A GPU has no memory for one image.
    """
    default = 8 if device.type == "cpu" else 64
    if wanted != "auto" or device.type == "cpu":
        return min(default if wanted in (None, "auto") else int(wanted), num_images)
    found = largest_batch(try_batch, device, num_images)
    if processes is None:
        return found
    votes = torch.zeros(32, device=device)
    votes[found.bit_length() - 1] = 1
    return 1 << int(processes.sum(votes).nonzero()[0])  # the smallest of the processes' powers of two


def largest_batch(try_batch: Callable[[int], object], device: torch.device, num_images: int) -> int:
    """Return the largest power of two, up to 512 and `num_images`, for which `try_batch` does not run out of memory.

    Raises:
        UserError: It does for one image.
    """
    size = 1 << (min(_LARGEST, num_images).bit_length() - 1)

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=size, reduce_batch_size_fn=halve)
    def attempt(batch_size: int) -> int:
        try_batch(batch_size)
        return batch_size

    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_per_process_memory_fraction(_SHARE_OF_MEMORY, device)
    try:
        return attempt()
    except RuntimeError as error:
        if size:
            raise
        raise UserError(f"{device} has no memory for a batch of one image") from error
    finally:
        if is_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def threads_on(device: torch.device, count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads whose current CUDA device is `device`: torch keeps it per thread."""
    is_numbered_gpu = device.type == "cuda" and device.index is not None
    choose_device = partial(torch.cuda.set_device, device) if is_numbered_gpu else None
    return ThreadPoolExecutor(count, name, initializer=choose_device)


@contextmanager
def one_core_each(count: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads in which every torch operation uses one core.

    Torch splits sums over cores, so the last bits of a batch depend on their number. With one core per batch and
    several batches at once, images do not depend on cores, processes or environment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = threads_on(device, count, "sampler")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
