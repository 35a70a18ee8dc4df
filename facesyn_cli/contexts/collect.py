"""Candidates are made by all processes, or by separate runs; one process accepts them in their order.

Every process of a run makes one batch at a time on a GPU, and on a CPU one on each core, since the last bits of a face
depend on the number of cores that compute it. A run that is part i of n makes batches i, i + n, ... of as many
candidates as contexts are missing, and the run that joins the parts makes more where these were too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.image_formats import suffix_of_content
from facesyn_cli.contexts.candidate_files import CandidateFiles, FilteredBatch, apply_filters, make
from facesyn_cli.contexts.selection import Block, Progress
from facesyn_cli.contexts.source import ContextFilter, ContextSource
from facesyn_cli.data.sharding import row_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.progress import progress


@dataclass(frozen=True)
class CandidateMaker:
    """Makes candidates together with all processes.

    Args:
        source: Yields candidates.
        filters: Names and filters, in the order in which they act; those that remember are last.
        files: Where finished batches go.
        processes: Those of the run.
        pool: Threads that make batches.
        num_at_once: Batches that all processes make at once.
    """

    source: ContextSource
    filters: Sequence[tuple[str, ContextFilter]]
    files: CandidateFiles
    processes: Processes
    pool: Executor
    num_at_once: int

    def make(self, batches: list[range]) -> None:
        """Make batches, divided over all processes. A collective.

        Raises:
            UserError: In every process, if any of them fails.
            Stopped: In every process, if any of them received a stop signal.
        """
        alone = [(name, context_filter) for name, context_filter in self.filters if not context_filter.remembers]

        def make_one(numbers: range) -> None:
            signals.check()
            self.files.write(make(self.source, alone, numbers))

        with self.processes.together():
            list(self.pool.map(make_one, share(batches, self.processes.rank, self.processes.world_size)))

    def make_part(self, part: tuple[int, int], start: int, num_wanted: int | None) -> None:
        """Make the missing batches of part i of n. A collective.

        Args:
            part: (i, n), i from 1.
            start: Number of the first candidate of all parts.
            num_wanted: How many candidates all parts make, rounded up to whole batches; None: all of the source.
        """
        mine = self.processes.from_first(lambda: self.files.of_part(part, start, num_wanted))
        todo = [numbers for numbers, is_finished in mine if not is_finished]
        total = sum(len(numbers) for numbers, _ in mine)
        with progress("candidates", total, "candidates", total - sum(map(len, todo))) as bar:
            for some in row_batches(range(len(todo)), self.num_at_once):
                self.make([todo[place] for place in some])
                bar.advance(sum(len(todo[place]) for place in some))


@dataclass(frozen=True)
class Acceptance:
    """Accepts candidates in their order, in the first process.

    Args:
        remembering: Names and filters that compare candidates with accepted ones.
        found: Blocks of earlier runs; gets the new ones.
        faces: Folder for the face images of accepted candidates.
        count: Contexts wanted; None: all of a source that ends.
        patience: Dropped candidates in a row after which there are no more to come; None: never.
    """

    remembering: Sequence[tuple[str, ContextFilter]]
    found: Progress
    faces: Path
    count: int | None
    patience: int | None

    @property
    def is_over(self) -> bool:
        """True when there are enough contexts, or too many candidates were dropped in a row."""
        num_dropped = self.found.next_candidate - 1 - self.found.last_kept()
        return self.found.has(self.count) or self.patience is not None and num_dropped >= self.patience

    def restore(self, files: CandidateFiles) -> None:
        """Tell the filters which candidates earlier runs accepted, and remove the files of these candidates."""
        for _, context_filter in self.remembering:
            context_filter.restore(self.found.vectors)
        last = self.found.blocks[-1:]
        files.remove_before(last[0].start if last and last[0].is_cut else self.found.next_candidate)

    def accept(self, candidates: FilteredBatch) -> Block:
        """Accept the candidates that are next; those after the last one wanted stay unknown."""
        result = apply_filters(candidates, self.remembering)
        batch, room = result.batch, self.found.room(self.count)
        names: list[str | None] = [None] * len(batch.origins)
        block = Block(batch.start, batch.stop, False, batch.vectors, batch.origins, names, result.dropped, batch.failed)
        if room is not None and len(block.origins) >= room:
            block = block.cut(room)
        names = [
            image and _write_face(self.faces, self.found.num_kept + row, image)
            for row, image in enumerate(batch.faces[: len(block.origins)])
        ]
        block = replace(block, faces=names)
        self.found.add(block)
        return block


def collect(maker: CandidateMaker, acceptance: Acceptance) -> None:
    """Make and accept candidates until there are enough or the source ends. A collective.

    Args:
        maker: Makes candidates.
        acceptance: Accepts them; only that of the first process is used.
    """
    files, found, processes = maker.files, acceptance.found, maker.processes

    def next_batches() -> list[range]:
        """Accept what is finished; return the batches to make before more can be accepted, none at the end."""
        for numbers, is_finished in files.batches(found.next_candidate):
            candidates = files.read(numbers) if is_finished and not acceptance.is_over else None
            if candidates is None or signals.received():
                break
            block = acceptance.accept(candidates)
            if not block.is_cut:
                files.remove(numbers)
            bar.advance(len(block.origins), dropped=found.next_candidate - found.num_kept)
        room = found.room(acceptance.count)
        return [] if acceptance.is_over else files.missing(found.next_candidate, maker.num_at_once, room)

    total = acceptance.count or maker.source.num_candidates or 0
    with progress("gen-contexts", total, "contexts", found.num_kept) as bar:
        processes.from_first(lambda: acceptance.restore(files))
        while batches := processes.from_first(next_batches):
            maker.make(batches)
        with processes.together():
            signals.check()


def _write_face(folder: Path, row: int, face: bytes) -> str:
    """Write the face of a context; padded names sort like the rows, as published tools expect."""
    name = f"{row:07d}{suffix_of_content(face) or '.png'}"
    write_bytes(folder / name, face, durable=False)
    return name
