"""Images that a filter refuses are drawn again, block by block of whole identities.

A block is drawn, judged and drawn again in memory, and only the images that remain are written. What is drawn
together follows from the block alone, so files are the same bits for any number of processes and after any
kill; a block that was not finished is begun again. `.judged/` says for each finished identity which draw of each
image was kept and with what score; `judged.csv` joins them when the set is finished.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically, write_bytes
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.errors import UserError
from facesyn_cli.sampling.consistency import SampleFilter
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.untrusted.arrays import read_archive

TABLE = "judged.csv"       # one line per image: key, number of the draw that was kept (0 the first), score, kept
_FOLDER = ".judged"
_BATCHES_PER_BLOCK = 8


@dataclass(frozen=True)
class Judged:
    """What came of n images.

    Args:
        attempts: (n,) which draw of each image was kept; 0 is the first.
        scores: (n,) its score.
        draws: (n,) how often it was drawn.
    """

    attempts: NDArray[np.int64]
    scores: NDArray[np.float64]
    draws: NDArray[np.int64]


class RejectionSampling:
    """Draws blocks of images until the filter is content with them.

    Args:
        sample_filter: Scores images.
        embed: The judge: (n, S, S, 3) uint8 -> (n, D) unit rows.
        vectors: (N, E) contexts of the identities.
        per_id: Images of each identity.
        batch_size: Images the network sees at once.
        folder: Of the set.

    Attributes:
        blocks: Numbers of the images of each block, all of whole identities.
    """

    def __init__(
        self,
        sample_filter: SampleFilter,
        embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        vectors: NDArray[np.float32],
        per_id: int,
        batch_size: int,
        folder: Path,
    ) -> None:
        self._filter, self._embed, self._vectors, self._per_id = sample_filter, embed, vectors, per_id
        self._folder = folder / _FOLDER
        self.blocks = blocks(len(vectors), per_id, batch_size)

    def unfinished(self, done: set[int], part: tuple[int, int] | None = None) -> list[range]:
        """Return the blocks of image numbers that are not written or not judged.

        Args:
            done: Numbers of the images that are written.
            part: (i, n), i from 1: only the blocks of part i of n.
        """
        index, count = part or (1, 1)
        mine = share(self.blocks, index - 1, count)
        known = self._known()
        return [
            block for block in mine
            if not done.issuperset(block) or not known.keys() >= set(range(*self._rows(block)))
        ]

    def knows(self) -> Callable[[range], bool]:
        """Return a function that tells whether all identities of some images were judged, as of now."""
        known = self._known().keys()
        return lambda images: known >= set(range(images[0] // self._per_id, images[-1] // self._per_id + 1))

    def draw(self, engine: BatchEngine, block: range) -> Callable[[int], NDArray[np.uint8]]:
        """Draw a block and note what came of it; return its images by row."""
        pixels, judged = self._draw(engine, block)
        start, stop = self._rows(block)
        path = self._folder / f"{start:09d}-{stop:09d}.npz"
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, per_id=self._per_id, first=start, **vars(judged))
        return lambda row: pixels[row]

    def join(self, key: Callable[[int], str]) -> dict[str, int]:
        """Write `judged.csv` and return the counts for the header.

        Args:
            key: Number of an image -> `identity/sample`.

        Raises:
            UserError: An identity is not finished.
        """
        text, known, redrawn, below, num_draws = io.StringIO(), self._known(), 0, 0, 0
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["key", "draw", "score", "kept"])
        for row in range(len(self._vectors)):
            if row not in known:
                raise UserError(f"{self._folder}: {key(row * self._per_id)} was not judged; run the same command again")
            judged = known[row]
            is_good = judged.scores >= self._filter.lowest
            for sample, good in enumerate(is_good):
                name, kept = key(row * self._per_id + sample), "yes" if good else "best of all draws"
                writer.writerow([name, judged.attempts[sample], f"{judged.scores[sample]:.6f}", kept])
            redrawn += int((judged.attempts > 0).sum())
            below += int((~is_good).sum())
            num_draws += int(judged.draws.sum())
        write_bytes(self._folder.parent / TABLE, text.getvalue().encode())
        return {"draws": num_draws, "replaced": redrawn, "below_filter": below}

    def _draw(self, engine: BatchEngine, block: range) -> tuple[NDArray[np.uint8], Judged]:
        pixels = _draw_images(engine, block, 0)                                # (n, S, S, 3)
        first = self._embed(pixels)                                            # (n, D)
        rows = np.arange(len(block))
        scores = self._scores(first, rows, first, block)
        attempts = np.zeros(len(block), dtype=np.int64)
        draws = np.ones(len(block), dtype=np.int64)
        for attempt in range(1, self._filter.attempts + 1):
            bad = np.flatnonzero(scores < self._filter.lowest)
            if not len(bad):
                break
            again = _draw_images(engine, [block[row] for row in bad], attempt)
            found = self._scores(self._embed(again), bad, first, block)
            is_better = found > scores[bad]
            better = bad[is_better]
            pixels[better], scores[better], attempts[better] = again[is_better], found[is_better], attempt
            draws[bad] += 1
        return pixels, Judged(attempts, scores, draws)

    def _scores(
        self, vectors: NDArray, rows: NDArray[np.int64], first: NDArray, block: range
    ) -> NDArray[np.float64]:
        """Return the scores of the images at `rows` of the block, identity by identity."""
        scores = np.empty(len(rows))
        owners, per_id = rows // self._per_id, self._per_id
        for owner in np.unique(owners):
            own = owners == owner
            context = self._vectors[block.start // per_id + owner]
            firsts = first[owner * per_id : (owner + 1) * per_id]
            scores[own] = self._filter.scores(vectors[own], rows[own] % per_id, firsts, context)
        return scores

    def _rows(self, block: range) -> tuple[int, int]:
        """Return the numbers of the first identity of a block and of the one after its last."""
        return block.start // self._per_id, block.stop // self._per_id

    def _known(self) -> dict[int, Judged]:
        """Return what is known of each identity; what is damaged, or of other numbers of images, is not."""
        known = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                stored = read_archive(path)
                if stored["per_id"] != self._per_id:
                    continue
                parts = [stored[name].reshape(-1, self._per_id) for name in ("attempts", "scores", "draws")]
                known.update({
                    int(stored["first"]) + k: Judged(*judged) for k, judged in enumerate(zip(*parts, strict=True))
                })
            except (UserError, ValueError, KeyError):
                continue
        return known


def blocks(num_ids: int, per_id: int, batch_size: int) -> list[range]:
    """Cut the images of a set into blocks of whole identities, about eight batches each."""
    ids = fixed_batches(num_ids, max(1, _BATCHES_PER_BLOCK * batch_size // per_id))
    return [range(part.start * per_id, part.stop * per_id) for part in ids]


def _draw_images(engine: BatchEngine, images: Sequence[int], attempt: int) -> NDArray[np.uint8]:
    """Return (n, S, S, 3) images, batch by batch."""
    batches = [[images[i] for i in part] for part in fixed_batches(len(images), engine.batch_size)]
    started = []
    for batch, then in zip_longest(batches, batches[1:]):
        signals.check()
        started.append((engine.start(batch, [attempt] * len(batch), then), len(batch)))
    return np.stack([pixels_of(row) for pixels_of, count in started for row in range(count)])
