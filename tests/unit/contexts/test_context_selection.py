"""Blocks of progress: cut, read back, damaged, extended."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.contexts.candidate_files import FilteredBatch, apply_filters
from facesyn_cli.contexts.selection import Block, Progress, in_order
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.plugins import registry


def block(start: int, stop: int, kept: list[int]) -> Block:
    """Return a block that kept some candidates and dropped the others."""
    dropped = [k for k in range(start, stop) if k not in kept]
    vectors = np.stack([np.full(512, k, dtype=np.float32) for k in kept]) if kept else np.empty((0, 512), np.float32)
    return Block(start, stop, False, vectors, [{"candidate": k} for k in kept], [f"{k}.png" for k in kept],
                 {"unique": dropped}, [(k, f"bad {k}") for k in dropped if k % 2])


def filled(folder, *blocks: Block) -> None:
    progress = Progress(folder)
    for one in blocks:
        progress.add(one)


def state(progress: Progress) -> tuple:
    return progress.num_kept, progress.next_candidate, progress.vectors[:, 0].tolist(), progress.dropped()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_the_state_at_a_count_does_not_depend_on_what_was_asked_before(tmp_path, count):
    blocks = [block(0, 4, [0, 2]), block(4, 8, [5, 6, 7]), block(8, 12, [9])]
    filled(tmp_path / "whole", *blocks)
    progress = Progress.open(tmp_path / "whole", count)
    kept = [0, 2, 5, 6, 7, 9][:count]
    last = kept[-1]
    assert state(progress) == (count, last + 1, kept, {"unique": last + 1 - count})
    assert progress.has(count) and progress.last_kept() == last
    assert state(Progress.open(tmp_path / "whole", count)) == state(progress)
    assert all(k <= last for one in progress.blocks for k, _ in one.failed)


def test_more_than_before_makes_only_the_cut_block_again(tmp_path):
    filled(tmp_path, block(0, 4, [0, 2]), block(4, 8, [5, 6, 7]).cut(2))
    progress = Progress.open(tmp_path, 4)
    assert progress.has(4) and progress.next_candidate == 7
    grown = Progress.open(tmp_path, 5)
    assert state(grown) == (2, 4, [0, 2], {"unique": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["block-000000000000.npz"]
    assert Progress.open(tmp_path, None).next_candidate == 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_nothing_behind_a_damaged_or_missing_block_is_believed(tmp_path, damage):
    filled(tmp_path, block(0, 4, [0]), block(4, 8, [5]), block(8, 12, [9]))
    middle = tmp_path / "block-000000000004.npz"
    middle.unlink() if damage is None else middle.write_bytes(damage)
    assert state(Progress.open(tmp_path, None)) == (1, 4, [0], {"unique": 3})
    assert len(list(tmp_path.iterdir())) == 1


def test_everything_survives_the_disk(tmp_path):
    filled(tmp_path, block(0, 4, [1, 2]), block(4, 6, []))
    first, second = Progress.open(tmp_path, None).blocks
    for got, want in ((first, block(0, 4, [1, 2])), (second, block(4, 6, []))):
        assert np.array_equal(got.vectors, want.vectors) and got.vectors.dtype == np.float32
        assert (got.start, got.stop, got.is_cut, got.origins, got.faces, got.dropped, got.failed) == (
            want.start, want.stop, want.is_cut, want.origins, want.faces, want.dropped, want.failed)


def filters(*names: str):
    return [(name, registry.build("context_filter", registry.configure("context_filter", {"name": name, "r": 0.5})))
            for name in names]


def test_the_order_of_filters_does_not_matter():
    """The first candidate is known: it must not shadow the second, which looks like it."""
    vectors = np.zeros((3, 512), dtype=np.float32)
    vectors[0, :2] = 1, 0
    vectors[1, :2] = 0.6, 0.8
    vectors[2, :2] = 0.6, -0.8
    batch = CandidateBatch(0, 3, vectors, [{"candidate": k} for k in range(3)], [b"0", b"1", b"2"])
    for names in (("unique", "novel"), ("novel", "unique")):
        chosen = in_order(filters(*names))
        for _, one in chosen:
            if one.needs:
                one.open(Resources(known=np.eye(1, 512, dtype=np.float32) * np.float32(0.8)))  # cosines 0.8, 0.48, 0.48
        result = apply_filters(FilteredBatch(batch, {}), chosen)
        assert result.batch.faces == [b"1", b"2"] and result.dropped == {"novel": [0], "unique": []}
    with pytest.raises(ValueError, match="unique and unique both"):
        in_order(filters("unique", "novel", "unique"))
