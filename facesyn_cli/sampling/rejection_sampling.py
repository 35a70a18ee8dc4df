"""Rejection sampling: images that a filter rejects are drawn again, block by block of whole identities.

A block is drawn, scored and drawn again in memory, and only the accepted images are written. Which images are drawn
together follows from the block alone, so files are the same bits for any number of processes and after any kill; an
unfinished block starts over. `.judged/` records for each finished identity which draw of each image was accepted and
its score; `judged.csv` joins them when the set is finished.
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
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.data.sharding import fixed_batches, row_batches
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.consistency import SampleFilter
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.untrusted.arrays import read_archive

TABLE = "judged.csv"       # one line per image: key, number of the accepted draw (0 the first), score, kept
_FOLDER = ".judged"
_BATCHES_PER_BLOCK = 8


@dataclass(frozen=True)
class Judged:
    """The result for n images.

    Args:
        attempts: (n,) accepted draw of each image; 0 is the first.
        scores: (n,) its score.
        draws: (n,) how often the image was drawn.
    """

    attempts: NDArray[np.int64]
    scores: NDArray[np.float64]
    draws: NDArray[np.int64]


class RejectionSampling:
    """Draws blocks of images until the filter accepts them or its attempts are used up.

    Args:
        sample_filter: Scores images.
        judge: The face recognizer whose embeddings are scored.
        vectors: (N, E) contexts of the identities.
        per_id: Images of each identity.
        batch_size: Images of a batch of the engine.
        folder: Of the set.

    Attributes:
        blocks: Numbers of the images of each block, all of whole identities, about eight batches each.
    """

    def __init__(
        self,
        sample_filter: SampleFilter,
        judge: FaceEmbedder,
        vectors: NDArray[np.float32],
        per_id: int,
        batch_size: int,
        folder: Path,
    ) -> None:
        self.filter = sample_filter
        self._judge, self._vectors, self._per_id, self._folder = judge, vectors, per_id, folder / _FOLDER
        ids = fixed_batches(len(vectors), max(1, _BATCHES_PER_BLOCK * batch_size // per_id))
        self._refused: list[int] = []  # numbers of refused images; blocks are drawn in several threads
        self.blocks = [range(part.start * per_id, part.stop * per_id) for part in ids]

    def counts(self) -> dict[str, int]:
        """Return how many images the filter has refused so far in this process."""
        return {"refused": sum(self._refused)}

    def judged(self) -> Callable[[range], bool]:
        """Return a function that tells whether all identities of some images were scored, as of now."""
        known = self._known().keys()
        return lambda images: known >= set(range(images[0] // self._per_id, images[-1] // self._per_id + 1))

    def draw(self, engine: BatchEngine, block: range) -> Callable[[int], NDArray[np.uint8]]:
        """Draw a block and record its scores; return its images by row."""
        pixels, judged = self._draw(engine, block)
        start, stop = block.start // self._per_id, block.stop // self._per_id
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
                raise UserError(f"{self._folder}: no scores of {key(row * self._per_id)}; run the same command again")
            judged = known[row]
            is_good = judged.scores >= self.filter.lowest
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
        first = self._judge.embed(pixels)                                            # (n, D)
        rows = np.arange(len(block))
        scores = self._scores(first, rows, first, block)
        attempts = np.zeros(len(block), dtype=np.int64)
        draws = np.ones(len(block), dtype=np.int64)
        self._refused.append(int((scores < self.filter.lowest).sum()))
        for attempt in range(1, self.filter.attempts + 1):
            bad = np.flatnonzero(scores < self.filter.lowest)
            if not len(bad):
                break
            again = _draw_images(engine, [block[row] for row in bad], attempt)
            found = self._scores(self._judge.embed(again), bad, first, block)
            self._refused.append(int((found < self.filter.lowest).sum()))
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
            scores[own] = self.filter.scores(vectors[own], rows[own] % per_id, firsts, context)
        return scores

    def _known(self) -> dict[int, Judged]:
        """Return the records of each identity; damaged ones, and those of another `per_id`, are ignored."""
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


def open_filter(
    cfg: PluginConfig, per_id: int, embedder: str | None
) -> tuple[SampleFilter, LoadedBackbone, Parent]:
    """Build a filter and load its judge; return both with the judge's entry for the header.

    Args:
        cfg: Settings of a `sample_filter` plugin.
        per_id: Images of each identity.
        embedder: Digest of the recognizer behind the contexts; None unknown.

    Raises:
        UserError: There is no judge, or the filter cannot work with it.
    """
    sample_filter = registry.build("sample_filter", cfg)
    if sample_filter.judge is None:
        raise UserError("a filter needs the weights of a judge, a face recognizer: filter.judge=FILE")
    judge = load_backbone(sample_filter.judge)
    sample_filter.check(per_id, judge.digest, embedder)
    return sample_filter, judge, Parent(str(sample_filter.judge), judge.digest)


def _draw_images(engine: BatchEngine, images: Sequence[int], attempt: int) -> NDArray[np.uint8]:
    """Return (n, S, S, 3) images, batch by batch."""
    batches = row_batches(images, engine.batch_size)
    started = []
    for batch, then in zip_longest(batches, batches[1:]):
        signals.check()
        started.append((engine.start(batch, [attempt] * len(batch), then), len(batch)))
    return np.stack([pixels_of(row) for pixels_of, count in started for row in range(count)])
