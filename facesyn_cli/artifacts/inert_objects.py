"""Objects of training frameworks in torch files: let through as empty shells, so that the tensors can be read.

A Lightning checkpoint holds more than tensors: settings (`AttributeDict`, `argparse.Namespace`, paths) and classes of
callbacks as keys; many checkpoints hold NumPy scalars and arrays (epoch, accuracy) beside their tensors. None of that
is needed. Names of the packages below are replaced by a class that does nothing; nothing is imported or called, and any
other name is refused as before (`weights_only`).
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities")
_SINGLE = ("argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath")
# What a pickled NumPy scalar or array asks for, of NumPy 1 and 2.
_NUMPY = ("numpy.dtype", "numpy.ndarray", "_codecs.encode", *(
    f"{core}.{name}" for core in ("numpy.core", "numpy._core")
    for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
))
_NUMPY_DTYPES = "numpy.dtypes."
_DICTS = ".AttributeDict"  # filled like a dict


class InertObject:
    """Stands for an object that is not needed; takes anything, keeps nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> InertObject:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def inert_objects(path: Path) -> AbstractContextManager:
    """Return a context in which `torch.load(path, weights_only=True)` passes over the objects named above."""
    try:
        names = _names(path)
    except (ValueError, RuntimeError, OSError, EOFError, KeyError, IndexError, pickle.UnpicklingError):
        return nullcontext()  # damaged: torch.load says how
    stands_for = [(OrderedDict if name.endswith(_DICTS) else InertObject, name) for name in names if _is_inert(name)]
    return torch.serialization.safe_globals(stands_for) if stands_for else nullcontext()


def _is_inert(name: str) -> bool:
    return (name.partition(".")[0] in PACKAGES or name in _SINGLE or name in _NUMPY
            or name.startswith(_NUMPY_DTYPES))


def _names(path: Path) -> set[str]:
    """Return the names that the pickles of a torch file ask for."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names = set()
    with open(path, "rb") as file:  # the format before: five pickles in a row, the content is the fourth
        for _ in range(4):
            names |= {arg.replace(" ", ".") for code, arg, _ in pickletools.genops(file) if code.name == "GLOBAL"}
    return names
