"""Write `.npy` files through Python's own files, so that every failed write is an error.

`numpy.save` writes real files through C: a full disk ends in an OSError without a number ("10240 requested and 5088
written"), and what the last buffer held can get lost without any error at all. Writing through a memory map ends in
SIGBUS. The bytes here are those that `numpy.save` writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


def write_npy(file: BinaryIO, array: NDArray) -> None:
    """Write one array.

    Args:
        file: A file opened for writing, at its beginning.
        array: Any array without Python objects.

    Raises:
        OSError: The file cannot be written; `errno` says why.
    """
    write_npy_blocks(file, array.shape, array.dtype, [array])


def write_npy_blocks(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[NDArray]) -> None:
    """Write an array in blocks of whole rows, in their order; only one of them has to be in memory.

    Args:
        file: A file opened for writing, at its beginning.
        shape: Of the whole array.
        dtype: Of all blocks.
        blocks: Arrays that follow each other along the first axis.

    Raises:
        OSError: The file cannot be written; `errno` says why.
        ValueError: The blocks do not make up the shape.
    """
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ValueError("an array of Python objects cannot be written")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    num_bytes = 0
    for block in blocks:
        num_bytes += file.write(np.ascontiguousarray(block, dtype).data.cast("B") if block.size else b"")
    if num_bytes != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"the blocks have {num_bytes} bytes; shape {shape} of {dtype} was announced")
