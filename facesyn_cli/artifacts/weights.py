"""Weights: tensors in safetensors with a `config.json` beside them; flat state dicts of other formats."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json
from facesyn_cli.artifacts.torch_files import check_plain, read_torch
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import input_size, read_start

CONFIG = "config.json"
_MAX_DEPTH = 4  # of nested dicts that are searched for tensors

WeightsPrecision = Literal["fp32", "fp16"]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors from a safetensors or torch file, onto the CPU.

    From a Lightning-style checkpoint (a dict with the key `state_dict`) that entry is read. Entries that are not
    tensors are left out.

    Raises:
        UserError: Missing, truncated, no tensor file, or a file with other objects than tensors (`torch_files`).
    """
    path = Path(path)
    input_size(path, expected="a weights file")
    if is_safetensors(path):
        try:
            return load_file(path)
        except MemoryError:
            raise
        except Exception as error:  # a damaged header raises nearly anything
            raise UserError(f"{path} is a damaged safetensors file: {' '.join(str(error).split())[:200]}") from error
    return _flatten(read_torch(path), path)


def read_tensor_dicts(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read every dict of tensors in a file of weights, onto the CPU; checkpoints nest several of them.

    Entries that are not tensors are left out, and so are dicts under keys that are not strings (optimizer states).

    Returns:
        Keys on the way to the dict, joined by `/` (empty for the outermost one) -> its tensors by name.

    Raises:
        UserError: As `read_torch`, or it holds no tensors.
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
        if isinstance(key, str) and isinstance(value, Mapping) and len(keys) < _MAX_DEPTH:
            _collect(value, (*keys, key), found, seen)


def write_weights(
    folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], name: str = "model",
    precision: WeightsPrecision = "fp32",
) -> None:
    """Write `<name>.safetensors` and `config.json`; tensors first.

    Args:
        folder: Where to write.
        tensors: State dict of the network.
        config: Content of `config.json`.
        name: Name of the tensor file.
        precision: fp32 keeps the tensors unchanged; fp16: see `to_half`.

    Raises:
        UserError: A number is too large for half precision.
    """
    write_tensors(folder / f"{name}.safetensors", to_half(tensors) if precision == "fp16" else tensors)
    write_json(folder / CONFIG, config)


def to_half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with matrices and kernels of float32 in half precision.

    Vectors (biases, parameters of norms) stay in float32: they are few, and running variances may be far below the
    smallest number of half precision. A network built in float32 loads both and computes in float32.

    Raises:
        UserError: A number is too large for half precision.
    """
    made = {}
    for name, value in tensors.items():
        if value.dtype == torch.float32 and value.ndim >= 2:
            half = value.half()
            if bool((half.isinf() & value.isfinite()).any()):
                raise UserError(f"{name} holds {value.abs().max():.4g}, too large for half precision (65504); use fp32")
            value = half
        made[name] = value
    return made


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file atomically; tensors that share memory are copied."""
    ready: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for key, value in tensors.items():
        value = value.detach().to("cpu").contiguous()
        storage = value.untyped_storage().data_ptr()
        ready[key] = value.clone() if storage in storages else value
        storages.add(storage)
    with write_atomically(path) as temporary, os_errors():
        save_file(ready, temporary)


def write_torch(path: Path, value: Any) -> None:
    """Write one file with `torch.save`, atomically."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file, os_errors():
        torch.save(value, file)


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise the underlying OSError where safetensors or torch fails to write a file."""
    try:
        yield
    except SafetensorError as error:  # holds the error number in its text
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    except RuntimeError as error:  # raised by torch while it handles the OSError
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a Weights folder.

    Raises:
        UserError: It is missing or not a mapping.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} must hold a mapping, found {type(config).__name__}")
    return config


def predicted_by(ldm: Path) -> str:
    """Return what an LDM predicts, `epsilon` for published files and where nothing is there; reads no weights."""
    config = read_config(ldm) if (ldm / CONFIG).is_file() else {}
    return str(config.get("prediction", "epsilon"))


def section_of(config: dict[str, Any], kind: str, where: Path | str) -> dict[str, Any] | None:
    """Return the section (name and settings) of a plugin of the given kind in a `config.json`; None without one.

    Raises:
        UserError: The section's name is not a string.
    """
    section = config.get(kind)
    if not isinstance(section, dict) or "name" not in section:
        return None
    if not isinstance(section["name"], str):
        raise UserError(f"{where}: {kind}.name is {str(section['name'])[:80]!r}; the name of a {kind} was expected")
    return section


def is_safetensors(path: Path) -> bool:
    """True if a file starts with the length of a JSON header and `{`.

    Raises:
        UserError: It is not a regular file or cannot be read.
    """
    head = read_start(path, 9, "a weights file")
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < input_size(path)


def _flatten(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; a dict of tensors was expected")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors at its top level (keys: {', '.join(map(str, list(content)[:5]))})")
    check_plain(tensors, path)
    return tensors
