"""Read files written by `torch.save` without executing anything in them.

Files are read with `weights_only=True`: tensors and plain containers. A Lightning checkpoint holds more than that:
settings (`AttributeDict`, `argparse.Namespace`, paths) and callback classes as keys; many checkpoints hold NumPy
scalars and arrays (epoch, accuracy) beside their tensors. Objects of these types are replaced by empty shells; nothing
is imported or called for them, and any other type is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import MIB, input_size

LIGHTNING_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities")
_SKIPPED_NAMES = frozenset((
    "argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
    "numpy.dtype", "numpy.ndarray", "_codecs.encode", *(
        f"{core}.{name}" for core in ("numpy.core", "numpy._core")  # NumPy 1 and 2
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
))
_BLOCK = 1 << 20
_MAX_GROWTH = 64 * MIB  # bytes that a file may unpack to beyond its own size
_MAX_REPEATS = 4        # times that tensors may share the same numbers, on average


def read_torch(path: Path) -> Any:
    """Read a file written by `torch.save`, onto the CPU, allowing tensors and plain containers only.

    Settings and callbacks of a Lightning checkpoint are replaced by `InertObject`.

    Raises:
        UserError: No such file, or it holds anything else.
    """
    input_size(path, expected="a weights file")
    check_unpacked_size(path, path)
    try:
        with _inert_objects(path):
            content = load_tensors(path)
        _check_sums(path)
        return content
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        if name := forbidden_name(error):
            raise UserError(f"{path} holds more than tensors and is not read, for safety: it refers to {name}"
                            ) from error
        # torch's messages are about options of torch.load, Python's own about a byte or a key
        is_pickle = isinstance(error, (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError))
        reason = "no pickle of tensors" if is_pickle else str(error).split("\n")[0][:200]
        raise UserError(f"{path} is not a torch or safetensors file (or is damaged): {reason}") from error


def load_tensors(source: Path | BinaryIO) -> Any:
    """Return `torch.load(source, weights_only=True)` on the CPU, without torch's warnings about pickle protocols."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True)


def forbidden_name(error: Exception) -> str | None:
    """Return the class or function that torch refused to load, from its error message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else None


def check_unpacked_size(source: Path | BinaryIO, where: Path) -> None:
    """Refuse a torch file with compressed members that grow; torch itself stores members uncompressed.

    Raises:
        UserError: It unpacks to much more than its own size.
    """
    if not zipfile.is_zipfile(source):
        return  # the legacy format
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # damaged: torch.load raises
    packed, unpacked = sum(member.compress_size for member in members), sum(member.file_size for member in members)
    if unpacked > packed + _MAX_GROWTH:
        raise UserError(f"{where} unpacks from {packed} to {unpacked} bytes; a torch file, which is not compressed, "
                        "was expected")


def check_plain(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors of a torch file that are not dense, or that expand few stored numbers into many.

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


def _check_sums(path: Path) -> None:
    """Verify the checksums of the zip archive that a torch file is; torch does not.

    Raises:
        UserError: Some members have a wrong checksum. Where all have, the file was written without checksums.
    """
    if not zipfile.is_zipfile(path):
        return  # the legacy format has none
    num_wrong = num_right = 0
    first = ""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    while file.read(_BLOCK):
                        pass
                num_right += 1
            except zipfile.BadZipFile:
                num_wrong, first = num_wrong + 1, first or member.filename
    if num_wrong and num_right:
        raise UserError(f"{path} is damaged: {num_wrong} of {num_wrong + num_right} parts have a wrong checksum, "
                        f"first {first}")


class InertObject:
    """Placeholder for an unpickled object that is not needed; accepts any arguments and state, keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InertObject:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert_objects(path: Path) -> AbstractContextManager:
    """Return a context in which `torch.load(path, weights_only=True)` replaces the skipped types by `InertObject`."""
    try:
        names = _referenced_names(path)
    except (ValueError, RuntimeError, OSError, EOFError, KeyError, IndexError, pickle.UnpicklingError):
        return nullcontext()  # damaged: torch.load raises
    replaced = [(OrderedDict if name.endswith(".AttributeDict") else InertObject, name)  # filled like a dict
                for name in names
                if name.partition(".")[0] in LIGHTNING_PACKAGES or name in _SKIPPED_NAMES
                or name.startswith("numpy.dtypes.")]
    return torch.serialization.safe_globals(replaced) if replaced else nullcontext()


def _referenced_names(path: Path) -> set[str]:
    """Return the classes and functions that the pickles of a torch file refer to."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names = set()
    with open(path, "rb") as file:  # the legacy format: five pickles in a row, the fourth is the content
        for _ in range(4):
            names |= {arg.replace(" ", ".") for code, arg, _ in pickletools.genops(file) if code.name == "GLOBAL"}
    return names
