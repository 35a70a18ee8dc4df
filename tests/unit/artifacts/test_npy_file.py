"""Arrays in `.npy` files: the bytes that NumPy writes, and an error for every write that fails."""

from __future__ import annotations

import io

import numpy as np
import pytest

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.context_set import write_contexts
from facesyn_cli.artifacts.embedding_set import write_embeddings
from facesyn_cli.artifacts.npy_file import write_npy, write_npy_blocks
from facesyn_cli.errors import UserError

LIMIT = 20_000  # bytes a file may have in these tests


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, ">i4"])
@pytest.mark.parametrize("shape", [(), (0, 512), (3, 4), (2, 3, 4, 5)])
def test_the_bytes_are_those_of_numpy(shape, dtype) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_npy(ours, array)
    np.save(theirs, array)
    assert ours.getvalue() == theirs.getvalue()


def test_blocks_make_one_array() -> None:
    array, file = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32), io.BytesIO()
    write_npy_blocks(file, array.shape, np.float32, (array[start : start + 4] for start in (0, 4, 8)))
    assert np.array_equal(np.load(io.BytesIO(file.getvalue())), array)


def test_blocks_that_are_not_the_whole_are_an_error() -> None:
    with pytest.raises(ValueError, match="was expected"):
        write_npy_blocks(io.BytesIO(), (10, 3), np.float32, [np.zeros((4, 3))])


@pytest.mark.parametrize("num_floats", [5_100, 10_000])  # numpy.save: no error at all, and one without a number
def test_a_write_that_fails_is_one_line_and_leaves_nothing(limited_files, tmp_path, num_floats: int) -> None:
    limited_files(LIMIT)
    path = tmp_path / "x.npy"
    with pytest.raises(UserError, match="cannot write .*x.npy"), \
            write_atomically(path) as temporary, open(temporary, "wb") as file:
        write_npy(file, np.zeros(num_floats, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [10, 20])
def test_sets_of_vectors_are_whole_or_refused(limited_files, tmp_path, rows: int) -> None:
    limited_files(LIMIT)
    names, vectors = [f"p{row}" for row in range(rows)], np.ones((rows, 512), np.float32)
    with pytest.raises(UserError, match="cannot write"):
        write_embeddings(tmp_path, names, vectors)
    with pytest.raises(UserError, match="cannot write"):
        write_contexts(tmp_path, names, vectors, [{}] * rows, [None] * rows)
    assert not list(tmp_path.iterdir())
