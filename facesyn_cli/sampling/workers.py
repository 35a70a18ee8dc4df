"""Batches computed beside each other: one on a GPU, one per core on a CPU, with the same bits either way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch

from facesyn_cli.data.ordered_pool import usable_cores


def num_workers(wanted: int | None, device: torch.device, num_processes: int) -> int:
    """Return how many batches to compute at once.

    Args:
        wanted: What the user asked for; None: on a CPU as many as this process has cores for.
        device: Where they are computed; a GPU has one queue.
        num_processes: Processes on this machine, where the launcher does not say (LOCAL_WORLD_SIZE).
    """
    if device.type != "cpu":
        return 1
    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return wanted or max(1, usable_cores() // neighbors)


def threads_on(device: torch.device, count: int, name: str) -> ThreadPoolExecutor:
    """Return threads whose CUDA calls mean `device`: which GPU is meant is a setting of each thread."""
    is_numbered_gpu = device.type == "cuda" and device.index is not None
    choose_device = partial(torch.cuda.set_device, device) if is_numbered_gpu else None
    return ThreadPoolExecutor(count, name, initializer=choose_device)


@contextmanager
def one_core_each(count: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads in which every torch operation keeps to one core.

    Sums are split over cores, so the same batch on another number of cores has other last bits. With one
    core a batch, and several batches at once, images do not depend on cores, processes or environment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = threads_on(device, count, "sampler")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
