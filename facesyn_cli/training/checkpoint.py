"""Training checkpoints: whole folders that appear by rename, so a torn one is never mistaken for a whole one.

    checkpoints/step-00001000/<name>.safetensors   one file per group of tensors
    checkpoints/step-00001000/state.json           plain numbers: step, scheduler position, ...
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facesyn_cli.artifacts.files import TEMPORARY_PREFIX, explain, read_json, write_json
from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.errors import UserError

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk.

    Args:
        path: Its folder.
        step: Number of finished optimizer steps.
    """

    path: Path
    step: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read one group of tensors."""
        return read_tensors(self.path / f"{name}.safetensors")

    def state(self) -> dict[str, Any]:
        """Read the plain numbers."""
        return read_json(self.path / STATE)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest.

    Args:
        folder: The `checkpoints` folder.
        step: Number of finished optimizer steps.
        tensors: Groups of tensors by name (`model`, `ema`, `optimizer`, ...); empty groups are fine.
        state: JSON-able values.
        keep: How many checkpoints stay, at least 1.
    """
    final = folder / f"step-{step:08d}"
    draft = folder / f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, group in tensors.items():
            write_tensors(draft / f"{name}.safetensors", group)
        write_json(draft / STATE, {**state, "step": step})
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
    except UserError:
        shutil.rmtree(draft, ignore_errors=True)  # a full disk needs the space
        raise
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise explain(error, final) from error
    for old in _found(folder)[: -max(keep, 1)]:
        shutil.rmtree(old.path, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None."""
    found = _found(folder)
    return found[-1] if found else None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimizer's state under flat names `<parameter number>.<entry>`."""
    packed = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                packed[f"{number}.{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: dict[str, torch.Tensor]) -> None:
    """Put tensors of `pack_optimizer` back; hyper-parameters stay as the optimizer was built with."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in packed.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _found(folder: Path) -> list[Checkpoint]:
    if not folder.is_dir():
        return []
    found = [
        Checkpoint(path, int(match.group(1)))
        for path in folder.iterdir()
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / STATE).is_file()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)
