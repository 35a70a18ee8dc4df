"""How many images fit into one batch.

On a GPU small batches are tried and the largest power of two is taken whose extrapolated peak leaves a
reserve; that batch is tried too. On a CPU the activations of one image are counted and compared with the
memory that is free. Batches all have one size, so what fits at first fits an hour later.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facesyn_cli.errors import UserError

_LARGEST_ON_GPU = 512     # images; nothing is gained beyond, the processors are long busy
_LARGEST_ON_CPU = 32      # images a core; the weights are read often enough for it
_SHARE = 0.8              # of the free memory that a batch may take
_PROBES = (4, 8)          # images


def fitting_batch(try_batch: Callable[[int], None], device: torch.device, num_workers: int, num_images: int) -> int:
    """Return the batch size for a device: a power of two.

    Args:
        try_batch: Computes one evaluation and one decoding of a batch of so many images.
        device: Where.
        num_workers: Batches computed at once.
        num_images: No more are ever needed.

    Raises:
        UserError: Not even one image fits.
    """
    if device.type == "cuda":
        return _probe_gpu(try_batch, device, num_images)
    needed = peak_bytes(lambda: try_batch(1)) * 2  # as much again for what the libraries keep aside
    fit = int(_SHARE * available_bytes() / num_workers / max(needed, 1))
    if fit < 1:
        raise UserError(
            f"one image at a time needs {needed / 2**20:.0f} MiB on each of {num_workers} cores,"
            f" {available_bytes() / 2**20:.0f} MiB are free; set workers to fewer cores"
        )
    return _power_of_two(min(fit, _LARGEST_ON_CPU, num_images))


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the most bytes that tensors made by `run` held at one time; memory inside of kernels is not seen."""
    with torch.inference_mode(), _LiveBytes() as live:
        run()
    return live.peak


def available_bytes() -> int:
    """Return the memory this process may still take: of the machine, or of its control group."""
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    available = pages * size
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdecimal():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available)


def _probe_gpu(try_batch: Callable[[int], None], device: torch.device, num_images: int) -> int:
    peaks = []
    for count in _PROBES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            try_batch(count)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return 1
        peaks.append(torch.cuda.max_memory_allocated(device))
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    batch = _extrapolated(_PROBES, peaks, _SHARE * free)
    batch = _power_of_two(min(batch, _LARGEST_ON_GPU, num_images))
    while batch > 1:
        try:
            try_batch(batch)
            torch.cuda.synchronize(device)
            return batch
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch //= 2
    return 1


def _extrapolated(counts: tuple[int, int], peaks: list[int], limit: float) -> int:
    """Return the batch whose peak reaches `limit`, on the line through two measured ones."""
    slope = max(1.0, (peaks[1] - peaks[0]) / (counts[1] - counts[0]))
    return max(1, int((limit - peaks[0]) / slope) + counts[0])


def _power_of_two(count: int) -> int:
    return 1 << (max(1, count).bit_length() - 1)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive that were made while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), known)
        return result

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
