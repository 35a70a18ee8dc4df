"""Tensors of a checkpoint of which every process holds some columns: joined to be written, read in part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.heads.class_range import ClassRange, class_ranges

Columns = Callable[[str, str], ClassRange | None]  # `Task.columns`


def join_columns(
    tensors: dict[str, dict[str, torch.Tensor]], columns: Columns, processes: Processes
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the groups of tensors with the divided ones whole, in the first process; {} in the others. A collective.

    Args:
        tensors: Groups of tensors by name, with this process's columns of the divided ones.
        columns: Returns which columns these are.
        processes: All processes; they send their columns to the first one after the other.
    """
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for group, entries in tensors.items():
        for name, value in entries.items():
            part = columns(group, name) if value.ndim == 2 else None
            whole = value if part is None else _join(value, part, processes)
            if processes.is_first:
                joined.setdefault(group, {})[name] = whole
        if processes.is_first:
            joined.setdefault(group, {})
    return joined


def _join(value: torch.Tensor, part: ClassRange, processes: Processes) -> torch.Tensor:
    """Return the (rows, total) tensor on the CPU in the first process, and `value` in the others."""
    if processes.world_size == 1:
        return value
    own = value.detach().t().contiguous()  # (width, rows), as sharded class centers lie in memory
    if not processes.is_first:
        torch.distributed.send(own, 0)
        return value
    whole = torch.empty((value.shape[0], part.total), dtype=value.dtype)
    whole[:, part.columns] = own.t().cpu()
    for rank, other in enumerate(class_ranges(part.total, processes.world_size)[1:], 1):
        received = own.new_empty((other.width, value.shape[0]))
        torch.distributed.recv(received, rank)
        whole[:, other.columns] = received.t().cpu()
    return whole


def read_columns(path: Path, columns: Callable[[str], ClassRange | None]) -> dict[str, torch.Tensor]:
    """Read a tensor file; of the tensors of two axes for which `columns` returns a range only these columns."""
    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():
                stored = file.get_slice(name)
                part = columns(name) if len(stored.get_shape()) == 2 else None
                if part is not None and stored.get_shape()[1] != part.total:
                    raise ValueError(f"{name} has {stored.get_shape()[1]} columns, {part.total} were expected")
                tensors[name] = file.get_tensor(name) if part is None else stored[:, part.columns]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is a damaged safetensors file: {' '.join(str(error).split())[:200]}") from error
    return tensors
