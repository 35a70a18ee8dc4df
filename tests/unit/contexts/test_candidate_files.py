"""Batches of candidates: made from any source, stored, divided into parts, damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.contexts.candidate_files import CandidateFiles, FilteredBatch, make
from facesyn_cli.contexts.source import CandidateBatch, ContextFilter, ContextSource


class Numbers(ContextSource):
    """Candidate k is the k-th axis; every fifth has failed, every second has a face; batches of 4."""

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        while True:
            numbers = [k for k in range(start, start + 4) if k % 5]
            vectors = np.eye(512, dtype=np.float32)[numbers]
            faces = [f"face {k}".encode() if k % 2 else None for k in numbers]
            failed = [(k, f"bad {k}") for k in range(start, start + 4) if not k % 5]
            yield CandidateBatch(start, start + 4, vectors, [{"candidate": k} for k in numbers], faces, failed)
            start += 4


class Odd(ContextFilter):
    """Keeps odd candidates."""

    def select(self, vectors: np.ndarray) -> np.ndarray:
        return vectors.argmax(axis=1) % 2 == 1


def state(found: FilteredBatch) -> tuple[object, ...]:
    batch = found.batch
    assert np.array_equal(batch.vectors.argmax(axis=1), [origin["candidate"] for origin in batch.origins])
    return batch.start, batch.stop, batch.vectors.argmax(axis=1).tolist(), batch.faces, batch.failed, found.dropped


@pytest.mark.parametrize("numbers", [range(4, 8), range(6, 13), range(3, 5), range(0, 1)])
def test_a_batch_does_not_depend_on_the_batches_of_the_source(numbers: range) -> None:
    good = [k for k in numbers if k % 5]
    assert state(make(Numbers(), [], numbers)) == (
        numbers.start, numbers.stop, good, [f"face {k}".encode() if k % 2 else None for k in good],
        [(k, f"bad {k}") for k in numbers if not k % 5], {})
    assert state(make(Numbers(), [("odd", Odd())], numbers))[2:6:3] == (
        [k for k in good if k % 2], {"odd": [k for k in good if not k % 2]})


def test_contexts_may_have_another_width_and_batches_of_the_source_may_fail_whole() -> None:
    class Narrow(ContextSource):
        def candidates(self, start: int) -> Iterator[CandidateBatch]:
            yield CandidateBatch(0, 2, np.empty((0, 512), np.float32), [], [], [(0, "bad"), (1, "bad")])
            yield CandidateBatch(2, 3, np.ones((1, 32), np.float32), [{"candidate": 2}], [None])

    assert make(Narrow(), [], range(3)).batch.vectors.shape == (1, 32)
    assert make(Narrow(), [], range(2)).batch.vectors.shape == (0, 512)


def test_a_batch_survives_the_disk_and_a_damaged_one_is_made_again(tmp_path: Path, said: list[str]) -> None:
    files = CandidateFiles(tmp_path, 4, None)
    assert files.missing(0, 2, None) == [range(0, 4), range(4, 8)]
    assert files.missing(0, 9, 5) == [range(0, 4), range(4, 8)], "more than could be needed"
    found = make(Numbers(), [("odd", Odd())], range(4, 8))
    files.write(found)
    read = files.read(range(4, 8))
    assert state(read) == state(found) and read.batch.vectors.dtype == np.float32
    assert files.missing(0, 2, None) == [range(0, 4), range(8, 12)]
    empty = make(Numbers(), [], range(0, 1))
    files.write(empty)
    assert state(files.read(range(0, 1))) == state(empty) == (0, 1, [], [], [(0, "bad 0")], {})
    (path,) = tmp_path.glob("*-000000000008.npz")
    path.write_bytes(path.read_bytes()[:300])
    assert files.read(range(4, 8)) is None and "its candidates are made again" in said[-1]
    assert not path.exists()


def test_finished_batches_of_another_size_are_used(tmp_path: Path) -> None:
    files = CandidateFiles(tmp_path, 4, None)
    for numbers in (range(0, 4), range(4, 8), range(12, 16)):
        files.write(make(Numbers(), [], numbers))
    wider = CandidateFiles(tmp_path, 6, 21)
    assert list(wider.batches(0)) == [
        (range(0, 4), True), (range(4, 8), True), (range(8, 14), False), (range(14, 20), False), (range(20, 21), False)]
    assert list(wider.batches(0, 9))[-1] == (range(8, 14), False)
    wider.remove_before(8)
    assert [path.name for path in tmp_path.iterdir()] == ["000000000012-000000000016.npz"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_are_disjoint_and_cover_what_is_wanted(tmp_path: Path, count: int) -> None:
    for last in (None, 30):
        files = CandidateFiles(tmp_path, 4, last)
        for num_wanted in (17, 100, *([None] if last else [])):
            parts = [files.of_part((index, count), 8, num_wanted) for index in range(1, count + 1)]
            numbers = sorted(k for part in parts for batch, _ in part for k in batch)
            end = min(-(-(num_wanted or 99) // 4) * 4 + 8, last or 1000)
            assert numbers == list(range(8, end))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
