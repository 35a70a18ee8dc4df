"""Weights: tensors in safetensors with a JSON config beside them; and reading of foreign tensor files.

Foreign files are never executed: torch files are read with `weights_only`, anything else is refused.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json
from facesyn_cli.artifacts.inert_objects import inert_objects
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MIB, input_size, read_start

CONFIG = "config.json"
_BLOCK = 1 << 20
_MAX_GROWTH = 64 * MIB  # bytes that a file may unpack to beyond its own size
_MAX_REPEATS = 4        # times that tensors may share the same numbers, on average

WeightsPrecision = Literal["fp32", "fp16"]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors from safetensors or a torch file, onto the CPU.

    Of a Lightning-style checkpoint (a dict with the key `state_dict`) that entry is taken. Entries that
    are no tensors are left out.

    Raises:
        UserError: Missing, truncated, no tensor file, or a file that wants to run code.
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


def read_torch(path: Path) -> Any:
    """Read a file written by `torch.save`, allowing tensors and plain containers only.

    Settings and callbacks of a Lightning checkpoint come as empty objects, see `inert_objects`.

    Raises:
        UserError: Not such a file, or it holds anything else.
    """
    input_size(path, expected="a weights file")
    check_unpacked_size(path, path)
    try:
        with inert_objects(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not write itself
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
        return content
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        if asked := forbidden_name(error):
            reason = f"it asks for {asked}"
            raise UserError(f"{path} holds more than tensors and is not read, for safety: {reason}") from error
        # torch's words are about options of torch.load, Python's own about a byte or a key
        is_pickle = isinstance(error, (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError))
        reason = "no pickle of tensors" if is_pickle else str(error).split("\n")[0][:200]
        raise UserError(f"{path} is not a torch or safetensors file (or is damaged): {reason}") from error


def check_unpacked_size(source: Path | BinaryIO, where: Path) -> None:
    """Refuse a torch file whose members are compressed and grow: torch itself stores them as they are.

    Args:
        source: The file, or an open one.
        where: Its name, for the message.

    Raises:
        UserError: It unpacks to much more than its own size.
    """
    if not zipfile.is_zipfile(source):
        return  # the format before it
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # damaged: torch says how
    packed, unpacked = sum(member.compress_size for member in members), sum(member.file_size for member in members)
    if unpacked > packed + _MAX_GROWTH:
        raise UserError(f"{where} unpacks from {packed} to {unpacked} bytes; a torch file, which is not compressed, "
                        "was expected")


def _check_sums(path: Path) -> None:
    """Refuse a torch file in which a bit has changed: it is a zip archive with checksums, which torch never looks at.

    Raises:
        UserError: Some members have other checksums than the archive says; where all have, it was written without.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before it has none
    wrong = right = 0
    first = ""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    while file.read(_BLOCK):
                        pass
                right += 1
            except zipfile.BadZipFile:
                wrong, first = wrong + 1, first or member.filename
    if wrong and right:
        raise UserError(f"{path} is damaged: {wrong} of {wrong + right} parts have another checksum than it says, "
                        f"first {first}")


def forbidden_name(error: Exception) -> str | None:
    """Return the class or function that a file wanted and torch refused, as torch's long message names it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else None


def write_weights(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    name: str = "model",
    precision: WeightsPrecision = "fp32",
) -> None:
    """Write `<name>.safetensors` and `config.json`; tensors first.

    Args:
        folder: Where to write.
        tensors: State dict of the network.
        config: Content of `config.json`.
        name: Name of the tensor file.
        precision: fp32 keeps the numbers as they are; fp16 see `halved`.

    Raises:
        UserError: A number is too large for half precision.
    """
    write_tensors(folder / f"{name}.safetensors", halved(tensors) if precision == "fp16" else tensors)
    write_json(folder / CONFIG, config)


def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with matrices and kernels of float32 in half precision.

    Vectors (biases, what norms hold) stay as they are: they are few, and running variances may be far below the
    smallest number of half precision. A network built in float32 takes both without a word and computes in float32.

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
    """Write one safetensors file by rename. Shared memory is copied out."""
    ready = {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}
    with write_atomically(path) as temporary, system_errors():
        save_file(ready, temporary)


def write_torch(path: Path, value: Any) -> None:
    """Write one file with `torch.save`, by rename."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file, system_errors():
        torch.save(value, file)


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise the OSError behind what safetensors and torch raise when a file cannot be written."""
    try:
        yield
    except SafetensorError as error:  # repeats in words what the system said
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    except RuntimeError as error:  # torch raises an error of its own while it handles that of the system
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a Weights folder.

    Raises:
        UserError: It is missing or no mapping.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} must hold a mapping, found {type(config).__name__}")
    return config


def section_of(config: dict[str, Any], kind: str, where: Path | str) -> dict[str, Any] | None:
    """Return the section of a `config.json` that names a plugin and its settings; None where it has none.

    Args:
        config: Content of the file.
        kind: Kind of plugin, which is the section's name.
        where: The file, for the message.

    Raises:
        UserError: The section's name is no text.
    """
    section = config.get(kind)
    if not isinstance(section, dict) or "name" not in section:
        return None
    if not isinstance(section["name"], str):
        raise UserError(f"{where}: {kind}.name is {str(section['name'])[:80]!r}; the name of a {kind} was expected")
    return section


def is_safetensors(path: Path) -> bool:
    """True for a file that starts with the length of a JSON header and `{`.

    Raises:
        UserError: It is no regular file or cannot be read.
    """
    head = read_start(path, 9, "a weights file")
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < input_size(path)


def check_plain(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors of a torch file that are not dense, or that show few numbers as many.

    Args:
        tensors: All tensors taken from the file.
        path: The file.

    Raises:
        UserError: One is sparse, quantized or without numbers, or they are far larger than the file.
    """
    total = 0
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"{path}: {key} is sparse, quantized or without numbers; a plain tensor was expected")
        total += value.numel() * value.element_size()
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key} of shape {list(value.shape)} repeats fewer numbers; a plain tensor was "
                            "expected")
    if total > _MAX_REPEATS * input_size(path) + _MAX_GROWTH:
        raise UserError(f"{path}: its tensors show the same numbers many times, {total} bytes in all; plain tensors "
                        "were expected")


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
