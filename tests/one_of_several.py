"""One of several processes without the others: sums hold its own share only, so that a test can add the shares."""

from __future__ import annotations

from types import SimpleNamespace

import torch


def one_of(world_size: int, rank: int) -> SimpleNamespace:
    """Return what looks like `distributed.Processes` of that rank on the CPU."""
    return SimpleNamespace(
        rank=rank, world_size=world_size, is_first=rank == 0, device=torch.device("cpu"), sum=lambda values: values,
        barrier=lambda: None, from_first=lambda compute: compute(), raise_in_all=lambda problem, place=0: None,
    )
