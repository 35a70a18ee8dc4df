"""Batches of candidates on disk: made in any order, by any process or run, until the filters that remember take them.

Drawing and embedding faces is what `gen-contexts` takes its time for. Candidate k depends on its number alone, and so
does the decision of a filter that does not remember earlier ones. So a batch of candidates, filtered by these, is made
independently of all others, and becomes the file `<start>-<stop>.npz`. The files wait until their turn comes; one that
is not needed, since enough contexts were accepted before it, stays for a higher `count`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.console import log
from facesyn_cli.contexts.source import CandidateBatch, ContextFilter, ContextSource
from facesyn_cli.data.sharding import share
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import read_archive
from facesyn_cli.untrusted.parsing import parse_json

_NAME = re.compile(r"(\d{12})-(\d{12})\.npz")


@dataclass(frozen=True)
class FilteredBatch:
    """A batch of candidates, and the numbers of those that filters dropped from it.

    Args:
        batch: Without the dropped candidates.
        dropped: Filter -> numbers, in the order in which the filters acted.
    """

    batch: CandidateBatch
    dropped: dict[str, list[int]]


def make(
    source: ContextSource, filters: Sequence[tuple[str, ContextFilter]], numbers: range
) -> FilteredBatch:
    """Make some candidates, from as many batches of the source as it takes, and filter them.

    Args:
        source: Yields candidates.
        filters: Names and filters that act.
        numbers: Of the candidates.
    """
    vectors, origins, faces, failed = [], [], [], []
    for batch in source.candidates(numbers.start):
        rows = [row for row, origin in enumerate(batch.origins) if origin["candidate"] < numbers.stop]
        vectors.append(batch.vectors[rows])
        origins += [batch.origins[row] for row in rows]
        faces += [batch.faces[row] for row in rows]
        failed += [(k, text) for k, text in batch.failed if k < numbers.stop]
        if batch.stop >= numbers.stop:
            break
    found = [rows for rows in vectors if len(rows)]  # a batch that failed as a whole has no known width
    joined = np.concatenate(found) if found else np.empty((0, EMBEDDING_SIZE), np.float32)
    batch = CandidateBatch(numbers.start, numbers.stop, joined, origins, faces, failed)
    return apply_filters(FilteredBatch(batch, {}), filters)


def apply_filters(found: FilteredBatch, filters: Sequence[tuple[str, ContextFilter]]) -> FilteredBatch:
    """Return a batch without the candidates that further filters drop; they act in the given order."""
    batch, dropped = found.batch, dict(found.dropped)
    numbers = np.array([origin["candidate"] for origin in batch.origins], dtype=np.int64)
    rows = np.arange(len(numbers))
    for name, context_filter in filters:
        keep = context_filter.select(batch.vectors[rows])
        dropped[name] = numbers[rows[~keep]].tolist()
        rows = rows[keep]
    kept = CandidateBatch(
        batch.start, batch.stop, batch.vectors[rows], [batch.origins[row] for row in rows],
        [batch.faces[row] for row in rows], batch.failed,
    )
    return FilteredBatch(kept, dropped)


class CandidateFiles:
    """The batches of candidates in a folder.

    Args:
        folder: The folder; need not exist.
        batch_size: Candidates in a batch that is to be made; finished ones may have another size.
        num_candidates: Of the source; None: endless.
    """

    def __init__(self, folder: Path, batch_size: int, num_candidates: int | None) -> None:
        self._folder, self._batch_size, self._num_candidates = folder, batch_size, num_candidates

    def batches(self, start: int, stop: int | None = None) -> Iterator[tuple[range, bool]]:
        """Yield the numbers of the batches from candidate `start` on, and whether each is finished.

        Args:
            start: Number of a first candidate.
            stop: Batches begin before this number; None: no limit but the end of the source.
        """
        ends = [end for end in (stop, self._num_candidates) if end is not None]
        finished = self._finished()
        while not ends or start < min(ends):
            end = finished.get(start)
            is_finished = end is not None
            if end is None:
                end = start + self._batch_size
                end = end if self._num_candidates is None else min(end, self._num_candidates)
            yield range(start, end), is_finished
            start = end

    def of_part(self, part: tuple[int, int], start: int, num_wanted: int | None) -> list[tuple[range, bool]]:
        """Return the batches that part i of n makes, and whether each is finished.

        Args:
            part: (i, n), i from 1.
            start: Number of the first candidate of all parts.
            num_wanted: How many candidates all parts make, rounded up to whole batches; None: all of the source.
        """
        index, count = part
        stop = None if num_wanted is None else start + num_wanted
        return share(list(self.batches(start, stop)), index - 1, count)

    def missing(self, start: int, most: int, num_wanted: int | None) -> list[range]:
        """Return the first batches from candidate `start` on that are not finished.

        Args:
            start: Number of a first candidate.
            most: How many batches at most.
            num_wanted: Candidates that are enough; None: no limit.
        """
        if num_wanted is not None:
            most = min(most, -(-num_wanted // self._batch_size))
        return list(islice((numbers for numbers, is_finished in self.batches(start) if not is_finished), most))

    def write(self, found: FilteredBatch) -> None:
        """Store a finished batch; it appears whole."""
        batch = found.batch
        facts = {"origins": batch.origins, "failed": batch.failed, "dropped": found.dropped}
        sizes = [-1 if face is None else len(face) for face in batch.faces]
        with write_atomically(self._path(range(batch.start, batch.stop))) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, vectors=batch.vectors, facts=np.array(json.dumps(facts)), sizes=np.array(sizes, dtype=np.int64),
                faces=np.frombuffer(b"".join(face or b"" for face in batch.faces), dtype=np.uint8),
            )

    def read(self, numbers: range) -> FilteredBatch | None:
        """Return a finished batch; None: it was damaged and is removed."""
        path = self._path(numbers)
        try:
            stored = read_archive(path, "a batch of candidates", ("vectors", "facts", "sizes", "faces"))
            facts = parse_json(str(stored["facts"]))
            ends = np.cumsum(stored["sizes"].clip(min=0))
            faces = [
                None if size < 0 else stored["faces"][end - size : end].tobytes()
                for size, end in zip(stored["sizes"].tolist(), ends.tolist(), strict=True)
            ]
            failed = [(k, text) for k, text in facts["failed"]]
            batch = CandidateBatch(numbers.start, numbers.stop, stored["vectors"], facts["origins"], faces, failed)
            return FilteredBatch(batch, facts["dropped"])
        except (UserError, ValueError, KeyError, TypeError) as error:
            log.warning(f"{path} is damaged ({error}); its candidates are made again")
            self.remove(numbers)
            return None

    def remove(self, numbers: range) -> None:
        """Remove a batch."""
        self._path(numbers).unlink(missing_ok=True)

    def remove_before(self, number: int) -> None:
        """Remove the batches that begin before candidate `number`: they were accepted or dropped."""
        for start, stop in self._finished().items():
            if start < number:
                self.remove(range(start, stop))

    def _finished(self) -> dict[int, int]:
        """Return first candidate -> number after the last one."""
        names = (_NAME.fullmatch(path.name) for path in sorted(self._folder.glob("*.npz")))
        return {int(name[1]): int(name[2]) for name in names if name}

    def _path(self, numbers: range) -> Path:
        return self._folder / f"{numbers.start:012d}-{numbers.stop:012d}.npz"
