"""Read untrusted `.npy` and `.npz` files: headers are checked against the file size before memory is allocated, and
pickled objects are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.input_files import GIB, input_size, open_input

MAX_ARCHIVE = 64 * GIB          # bytes of all arrays of a .npz
_MAX_RATIO, _SMALL = 1000, 2**28  # an archive that expands by more to over 256 MiB is refused
_PLAIN_KINDS = "biufcSU"        # booleans, numbers, text; not objects, records or dates
_VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # 3.0: records


def read_array(path: Path, expected: str = "a plain array file (.npy)") -> np.ndarray:
    """Return the array in a `.npy` file.

    Raises:
        UserError: It cannot be read, is not a `.npy` file, its size does not match its header, or it holds objects.
    """
    with open_input(path, expected=expected) as file:
        return array_from(file, input_size(path), path, expected)


def array_from(file: BinaryIO, size: int, where: Path | str, expected: str = "a plain array file (.npy)") -> np.ndarray:
    """Return the array in a `.npy` file that is open at its start, with `size` bytes from there to the end.

    Raises:
        UserError: As `read_array`.
    """
    start = file.tell()
    _checked_header(file, size, where, expected)
    try:
        file.seek(start)
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # damaged compressed members raise nearly anything
        raise _refusal(where, error, expected) from error


def map_array(path: Path, expected: str = "a plain array file (.npy)") -> np.ndarray:
    """Map a `.npy` file into memory, read-only; pages are read when they are used.

    Raises:
        UserError: As `read_array`.
    """
    with open_input(path, expected=expected) as file:
        shape, is_fortran, dtype = _checked_header(file, input_size(path), path, expected)
        offset = file.tell()
    if 0 in shape or not shape:
        return read_array(path, expected)  # an empty array cannot be mapped
    try:
        return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")
    except (OSError, ValueError, OverflowError) as error:
        raise _refusal(path, error, expected) from error


def read_archive(
    path: Path, expected: str = "an archive of arrays (.npz)", names: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return the arrays in a `.npz` file by name.

    Args:
        path: The file.
        expected: What the file should be, for the message.
        names: Arrays that must be present; there may be others.

    Raises:
        UserError: It cannot be read, is not an archive, is damaged, unpacks to too many bytes, holds objects, or lacks
            one of the arrays.
    """
    with open_input(path, expected=expected) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                total = sum(member.file_size for member in members)
                if total > MAX_ARCHIVE or total > max(_SMALL, _MAX_RATIO * input_size(path)):
                    raise UserError(f"{path} unpacks to {total} bytes; {expected} was expected")
                arrays = {}
                for member in members:
                    where = f"{path}, {member.filename[:80]!r}"
                    with archive.open(member) as content:
                        array = array_from(content, member.file_size, where, expected)
                    arrays[member.filename.removesuffix(".npy")] = array
                if missing := sorted(set(names) - arrays.keys()):
                    raise UserError(f"{path} lacks {', '.join(missing)}; {expected} was expected")
                return arrays
        except UserError:
            raise
        except Exception as error:  # a damaged archive raises nearly anything
            raise _refusal(path, error, expected) from error


def array_from_bytes(data: bytes, where: Path | str, expected: str = "a plain array file (.npy)") -> np.ndarray:
    """Return the array in the bytes of a `.npy` file; see `array_from`."""
    return array_from(io.BytesIO(data), len(data), where, expected)


def _checked_header(
    file: BinaryIO, size: int, where: Path | str, expected: str
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return (shape, is in Fortran order, dtype) and position the file at the data."""
    start = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        if version not in _VERSIONS:
            raise ValueError(f"format version {version[0]}.{version[1]}")
        shape, is_fortran, dtype = _VERSIONS[version](file)
        if dtype.hasobject or dtype.kind not in _PLAIN_KINDS or dtype.subdtype is not None:
            raise ValueError(f"it holds {dtype}, not numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"the shape {shape}")
        expected_size, actual_size = math.prod(shape) * dtype.itemsize, size - (file.tell() - start)
        if expected_size != actual_size:
            raise ValueError(f"{dtype} of shape {' x '.join(map(str, shape)) or '()'} is {expected_size} bytes, "
                             f"but {actual_size} follow its header")
        return shape, is_fortran, dtype
    except Exception as error:  # a damaged header raises nearly anything
        raise _refusal(where, error, expected) from error


def _refusal(where: Path | str, error: Exception, expected: str) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{where} is not {expected} (or is damaged): {reason}")
