"""Objects of training frameworks in torch files: let through as empty shells, so that the tensors can be read.

A Lightning checkpoint holds more than tensors: settings (`AttributeDict`, `argparse.Namespace`, paths) and classes of
callbacks as keys. None of that is needed. Names of the packages below are replaced by a class that does nothing;
nothing is imported or called, and any other name is refused as before (`weights_only`).
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities")
_SINGLE = ("argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath")
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
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, EOFError, KeyError, IndexError, pickle.UnpicklingError):
        return nullcontext()  # of the old format, or damaged: torch.load says which
    stands_for = [
        (OrderedDict if name.endswith(_DICTS) else InertObject, name)
        for name in names
        if name.partition(".")[0] in PACKAGES or name in _SINGLE
    ]
    return torch.serialization.safe_globals(stands_for) if stands_for else nullcontext()
