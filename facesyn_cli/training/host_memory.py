"""Memory of the host in training on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt
_MIB = 1 << 20


@contextmanager
def freed_memory_is_kept(device: torch.device) -> Iterator[None]:
    """In this block, freed memory of the host is kept for later tensors instead of being returned to the system.

    A training step needs tensors of the same sizes every time. glibc maps each large one anew, and the system clears
    its pages: a third of the processor time of a small recognizer's training. Only with glibc, and only where tensors
    live on the CPU.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # the values that glibc itself arrives at where large blocks come and go
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        library.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        library.malloc_trim(0)
