"""Freed memory is kept while a training runs, and returned to the system afterwards."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from facesyn_cli.training.host_memory import freed_memory_is_kept

IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
_NUMBERS = 64 << 20  # 256 MiB of float32


def resident() -> float:
    """Return the MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def freed() -> float:
    """Write to a large tensor, free it, and return the MiB of this process."""
    torch.ones(_NUMBERS)
    return resident()


@pytest.mark.skipif(not IS_GLIBC, reason="glibc alone has these settings")
def test_freed_memory_is_kept_in_the_block_alone() -> None:
    before = freed()
    with freed_memory_is_kept(torch.device("cpu")):
        assert freed() > before + 128
    assert resident() < before + 128 and freed() < before + 128


def test_nothing_changes_for_another_device() -> None:
    before = freed()
    with freed_memory_is_kept(torch.device("cuda")):
        assert freed() < before + 128
