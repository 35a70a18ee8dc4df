"""All dicts of tensors in a file of weights: checkpoints nest them, beside each other, under names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from facesyn_cli.artifacts.weights import check_plain, is_safetensors, read_tensors, read_torch
from facesyn_cli.errors import UserError

_DEPTH = 4  # of nested dicts that are searched


def read_tensor_dicts(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read every dict that holds tensors, onto the CPU.

    Entries that are no tensors are left out, and so are dicts under keys that are no text, as optimizers have them.

    Returns:
        Keys on the way to the dict, joined by `/` (empty for the outermost one) -> its tensors by name.

    Raises:
        UserError: Missing, truncated, no tensor file, without tensors, or a file that wants to run code.
    """
    path = Path(path)
    if is_safetensors(path):
        return {"": read_tensors(path)}
    content = read_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; a dict of tensors was expected")
    found: dict[str, dict[str, torch.Tensor]] = {}
    _collect(content, (), found, set())
    if not found:
        raise UserError(f"{path} holds no dict of tensors (keys: {', '.join(map(str, list(content)[:5]))})")
    for tensors in found.values():
        check_plain(tensors, path)
    return found


def _collect(
    content: Mapping[Any, Any], keys: tuple[str, ...], found: dict[str, dict[str, torch.Tensor]], seen: set[int]
) -> None:
    if id(content) in seen:
        return  # one dict under two names
    seen.add(id(content))
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        found["/".join(keys)] = tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and len(keys) < _DEPTH:
            _collect(value, (*keys, key), found, seen)
