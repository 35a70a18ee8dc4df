"""A restricted unpickler for plain data.

Published verification `.bin` files and lists of image names are pickles, written by Python 2 or 3 and by several NumPy
versions. This unpickler accepts bytes, numbers, text, lists, tuples, dicts, and NumPy arrays and scalars of numbers,
booleans or text; it refuses everything else. Arrays are unpickled as plain records and rebuilt from their bytes
afterwards, so no NumPy code runs on the instructions of the file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_PLAIN_KINDS = "biufSU"  # booleans, numbers, text


def load_plain(data: bytes) -> Any:
    """Unpickle plain data; strings written by Python 2 are returned as bytes.

    Raises:
        ValueError: The data is not a pickle, is damaged, or holds anything but plain data.
    """
    try:
        return _rebuilt(_PlainUnpickler(io.BytesIO(data), encoding="bytes").load(), {})
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _ALLOWED.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"the file refers to {module}.{name}, which plain data does not need")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the file refers to objects outside itself")


class _Function:
    """A callable that the pickle can call but neither modify nor instantiate."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file tries to change a function")


class _Dtype:
    """A pickled dtype; `order` is its byte order."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def resolve(self) -> np.dtype:
        dtype = np.dtype(str(self.code))
        if dtype.kind not in _PLAIN_KINDS:
            raise ValueError(f"an array of {dtype} is not plain numbers or text")
        return dtype.newbyteorder(self.order if self.order in "<>" else "=")


class _Array:
    """A pickled array; `__setstate__` receives (version, shape, dtype, is_fortran, raw bytes)."""

    def __init__(self) -> None:
        self.state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def resolve(self) -> np.ndarray:
        if self.state is None:
            raise ValueError("an array without content")
        *_, shape, dtype, is_fortran, raw = self.state
        return np.frombuffer(raw, dtype.resolve()).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(buffer)))
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> _Array:
    array = _Array()
    array.__setstate__((1, (), dtype, False, raw))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 writes bytes as latin-1 text."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Protocol 2 writes empty bytes as a call without arguments."""
    return b""


def _not_callable(*args: Any) -> None:
    raise pickle.UnpicklingError("the file builds an array in an unknown way")


_ALLOWED: dict[tuple[str, str], _Function] = {
    ("_codecs", "encode"): _Function(_encode),
    ("builtins", "bytes"): _Function(_no_bytes),
    ("__builtin__", "bytes"): _Function(_no_bytes),
    ("numpy", "ndarray"): _Function(_not_callable),
    ("numpy", "dtype"): _Function(_Dtype),
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Function(_reconstruct)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Function(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _Function(_from_buffer)


def _rebuilt(value: Any, done: dict[int, Any]) -> Any:
    """Replace array records by arrays and scalar records by Python numbers.

    Objects that are referenced several times are rebuilt once, so nested references cannot grow exponentially.
    """
    if not isinstance(value, (_Array, list, tuple, dict)):
        if isinstance(value, (_Dtype, _Function)):
            raise ValueError(f"{type(value).__name__.lstrip('_').lower()} where data was expected")
        return value
    if id(value) not in done:
        if isinstance(value, _Array):
            array = value.resolve()
            done[id(value)] = array.item() if array.ndim == 0 else array
        elif isinstance(value, dict):
            done[id(value)] = {_rebuilt(key, done): _rebuilt(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_rebuilt(item, done) for item in value)
    return done[id(value)]
