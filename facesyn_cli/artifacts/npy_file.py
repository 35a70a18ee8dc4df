"""Write `.npy` files through Python file objects, so that every failed write raises.

`numpy.save` writes real files through C: on a full disk it raises an OSError without errno ("10240 requested and 5088
written") or loses the last buffer without any error; a memory map ends in SIGBUS. The bytes equal those of
`numpy.save`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


def write_npy(file: BinaryIO, array: NDArray) -> None:
    """Write one array without Python objects to a file opened for writing, at its beginning.

    Raises:
        OSError: The file cannot be written; with `errno`.
    """
    write_npy_blocks(file, array.shape, array.dtype, [array])


def write_npy_blocks(file: BinaryIO, shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[NDArray]) -> None:
    """Write an array in blocks of rows, in order, with one block in memory at a time.

    Args:
        file: A file opened for writing, at its beginning.
        shape: Shape of the whole array.
        dtype: Type of all blocks.
        blocks: Consecutive parts of the array along the first axis.

    Raises:
        OSError: The file cannot be written; with `errno`.
        ValueError: The blocks do not add up to the shape.
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
        raise ValueError(f"the blocks have {num_bytes} bytes; shape {shape} of {dtype} was expected")
