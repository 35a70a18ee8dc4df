"""The accepted contexts, block by block, so that a killed run resumes with the next block.

Every batch of candidates becomes one file `progress/block-<start>.npz` with the candidates that the filters accepted
and those they dropped. The files are written in order and whole, so together they are the state of an uninterrupted run
at that point. The block in which the wanted number is reached is cut there; its candidates stay on disk, and when more
are wanted later, that block is made again from them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.contexts.source import ContextFilter
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.arrays import read_archive
from facesyn_cli.untrusted.parsing import parse_json

FOLDER = "progress"
CANDIDATES = "candidates"  # folder inside, of batches that wait for their turn


@dataclass(frozen=True)
class Block:
    """The result for candidates number `start` up to, not including, `stop`.

    Args:
        start: Number of the first candidate.
        stop: Number after the last candidate that was examined.
        is_cut: The wanted number was reached at candidate `stop` - 1; later ones of the batch are unknown.
        vectors: (K, 512) float32 unit rows that were accepted.
        origins: K records of where they come from.
        faces: K file names, or None.
        dropped: Numbers of the candidates that each filter dropped.
        failed: Number and reason of candidates (or faces) that could not be read.
    """

    start: int
    stop: int
    is_cut: bool
    vectors: np.ndarray
    origins: list[dict[str, Any]]
    faces: list[str | None]
    dropped: dict[str, list[int]]
    failed: list[tuple[int, str]]

    def cut(self, room: int) -> Block:
        """Return this block ending with its accepted candidate number `room`, counted from 1."""
        stop = self.origins[room - 1]["candidate"] + 1
        return replace(
            self, stop=stop, is_cut=True,
            vectors=self.vectors[:room], origins=self.origins[:room], faces=self.faces[:room],
            dropped={name: [k for k in numbers if k < stop] for name, numbers in self.dropped.items()},
            failed=[(k, text) for k, text in self.failed if k < stop],
        )


def in_order(filters: Sequence[tuple[str, ContextFilter]]) -> list[tuple[str, ContextFilter]]:
    """Return the filters with those that remember last.

    A filter that remembers must see only candidates that will be accepted. As the last one it does, and the result
    does not depend on the order in which the filters were listed.

    Raises:
        ValueError: More than one filter remembers.
    """
    remembering = [name for name, f in filters if f.remembers]
    if len(remembering) > 1:
        raise ValueError(f"{' and '.join(remembering)} both compare candidates with accepted ones; use one of them")
    return sorted(filters, key=lambda item: item[1].remembers)


@dataclass
class Progress:
    """The blocks that are finished, on disk and in memory.

    Args:
        folder: Where they lie.

    Attributes:
        blocks: In order and without gaps; at most the last one is cut.
        num_kept: Contexts accepted so far.
    """

    folder: Path
    blocks: list[Block] = field(default_factory=list, init=False)
    num_kept: int = field(default=0, init=False)

    @staticmethod
    def open(folder: Path, count: int | None, is_reader: bool = False) -> Progress:
        """Read the blocks of earlier runs that `count` contexts need.

        Blocks after a gap, a damaged one or the wanted number are deleted, and a cut one where more are wanted.

        Args:
            folder: Where they lie.
            count: Contexts wanted; None: all.
            is_reader: Change nothing on disk, since another run may.
        """
        progress = Progress(folder)
        paths = sorted(folder.glob("block-*.npz"))
        while paths and not progress.has(count):
            block = _read(paths[0])
            if block is None or block.start != progress.next_candidate:
                break
            room = progress.room(count)
            if block.is_cut and (room is None or len(block.origins) < room):
                break
            if room is not None and len(block.origins) >= room and not block.is_cut:
                block = block.cut(room)
                if not is_reader:
                    _write(paths[0], block)
            progress._append(block)
            paths.pop(0)
        for path in reversed([] if is_reader else paths):
            path.unlink()
        return progress

    @property
    def next_candidate(self) -> int:
        """Number of the first candidate that was not looked at."""
        return self.blocks[-1].stop if self.blocks else 0

    @property
    def vectors(self) -> np.ndarray:
        """(K, D) float32, all accepted rows."""
        kept = [block.vectors for block in self.blocks if len(block.vectors)]
        return np.concatenate(kept) if kept else np.empty((0, EMBEDDING_SIZE), np.float32)

    def has(self, count: int | None) -> bool:
        """True when `count` contexts are accepted; None is never reached."""
        return count is not None and self.num_kept >= count

    def room(self, count: int | None) -> int | None:
        """Return how many more contexts are wanted; None: endless."""
        return None if count is None else count - self.num_kept

    def last_kept(self) -> int:
        """Return the number of the last accepted candidate, -1 without any."""
        return next((block.origins[-1]["candidate"] for block in reversed(self.blocks) if block.origins), -1)

    def dropped(self) -> dict[str, int]:
        """Return the number of candidates that each filter dropped."""
        totals: Counter[str] = Counter()
        for block in self.blocks:
            totals.update({name: len(numbers) for name, numbers in block.dropped.items()})
        return dict(totals)

    def add(self, block: Block) -> None:
        """Store the next block."""
        _write(self.folder / f"block-{block.start:012d}.npz", block)
        self._append(block)

    def _append(self, block: Block) -> None:
        self.blocks.append(block)
        self.num_kept += len(block.origins)


def _write(path: Path, block: Block) -> None:
    facts = {name: value for name, value in vars(block).items() if name != "vectors"}
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, vectors=block.vectors, facts=np.array(json.dumps(facts)))


def _read(path: Path) -> Block | None:
    """Return a stored block, None when the file is damaged."""
    try:
        stored = read_archive(path)
        facts = parse_json(str(stored["facts"]))
        facts["failed"] = [(k, text) for k, text in facts["failed"]]
        return Block(vectors=stored["vectors"], **facts)
    except (UserError, ValueError, KeyError, TypeError):
        return None
