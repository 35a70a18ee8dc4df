"""EmbeddingSet: blocks are written as one array would be, and large sets are not held several times."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.embedding_set import EmbeddingSet, read_keys, write_embedding_blocks, write_embeddings
from facesyn_cli.errors import UserError

ROWS, WIDTH, BLOCK = 20_000, 64, 256
ROW_BYTES = 4 * WIDTH


def peak_bytes(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def keys_of(count: int) -> list[str]:
    return [f"p{row // 50}/{row % 50}" for row in range(count)]


def test_blocks_give_the_bytes_of_one_array(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((10, 4)) * 3
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    expected = io.BytesIO()
    np.save(expected, unit)
    write_embeddings(tmp_path / "one", keys_of(10), vectors)
    blocks = (vectors[a:b] for a, b in ((0, 0), (0, 3), (3, 3), (3, 10)))
    write_embedding_blocks(tmp_path / "many", keys_of(10), 4, blocks)
    for name in ("one", "many"):
        assert (tmp_path / name / "embeddings.npy").read_bytes() == expected.getvalue()
        assert read_keys(tmp_path / name / "keys.txt") == keys_of(10)


@pytest.mark.parametrize("count", [9, 11])
def test_a_row_for_each_key(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="the blocks have 160 bytes"):
        write_embedding_blocks(tmp_path, keys_of(count), 4, [np.ones((10, 4))])
    assert not list(tmp_path.iterdir())


def test_writing_holds_one_block(tmp_path: Path) -> None:
    keys = keys_of(ROWS)
    blocks = (np.full((min(BLOCK, ROWS - start), WIDTH), 1 + start, np.float32) for start in range(0, ROWS, BLOCK))
    names = 8 * sum(map(len, keys))  # the text of keys.txt, some times over
    assert peak_bytes(lambda: write_embedding_blocks(tmp_path, keys, WIDTH, blocks)) < names + 16 * BLOCK * ROW_BYTES


def test_joining_all_keys_copies_nothing_and_others_are_joined_by_name(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    found = EmbeddingSet(keys_of(ROWS), vectors, None, tmp_path, "")
    assert np.array_equal(found.join(found.keys[::-1]), vectors[::-1])
    assert np.array_equal(found.join(["p2/1", "p0/3"]), vectors[[101, 3]])
    with pytest.raises(UserError, match="no embedding for 1 of 2 images, first 'q'"):
        found.join(["p0/0", "q"])
    same = keys_of(ROWS)
    assert peak_bytes(lambda: found.join(same)) < ROWS * ROW_BYTES / 100
    assert np.array_equal(found.join(same), vectors)
