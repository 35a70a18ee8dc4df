"""The loop of a sampling run into tar shards: batches out of the engine, images in order into one file after another.

Batches (or the blocks of a filter) are those of the whole set, so that the images are the ones a folder would get.
One that lies in two shards is computed once where they are made one after the other, else for each of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest

import numpy as np

from facesyn_cli import signals
from facesyn_cli.console import progress
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.data.tar_archive import write_tar
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.layout import TarShards
from facesyn_cli.sampling.workers import one_core_each
from facesyn_cli.sampling.writing import pixels_shown

_AHEAD = 2           # batches computed or queued beyond those at work

Encoded = Iterator[bytes]  # the files of the images of a shard, in order


def write_shards(
    engine: BatchEngine,
    shards: list[range],
    layout: TarShards,
    encode: Callable[[np.ndarray], bytes],
    num_writers: int,
    num_workers: int,
    shown_before: int = 0,
    blocks: list[range] | None = None,
    draw: Callable[[range], Callable[[int], np.ndarray]] | None = None,
    show: Callable[[int, np.ndarray], None] | None = None,
) -> int:
    """Compute and write whole shards; return how many images they hold.

    Killed at any moment, all shards but the ones being written are finished work.

    Args:
        engine: Computes the batches.
        shards: Image numbers of each shard to make, rising.
        layout: Where they go.
        encode: (H, W, 3) uint8 -> bytes of the file.
        num_writers: Threads that encode.
        num_workers: Batches computed at once.
        shown_before: Images the progress bar counts as done at the start.
        blocks: All blocks of the set, where `draw` is given; None: batches of the engine's size.
        draw: Image numbers of a block -> function from a row to its pixels; None: `engine.start`.
        show: Gets each image and its number, in the threads that encode; None: nobody looks.

    Raises:
        UserError: An image could not be made, or a shard not be written.
    """
    count = sum(map(len, shards))
    with (
        progress("sample", shown_before + count, done=shown_before) as bar,
        ThreadPoolExecutor(num_writers, "encode") as encoders,
        one_core_each(num_workers, engine.device) as pool,
    ):

        def compute(rows: range, batch: range, then: range | None) -> list[Future[bytes]]:
            signals.check()
            pixels_of = draw(batch) if draw else engine.start(batch, then=then)

            def encoded(index: int) -> bytes:
                return encode(pixels_shown(pixels_of, index - batch[0], index, show))

            return [encoders.submit(encoded, index) for index in rows]

        tasks = list(_tasks(shards, blocks or fixed_batches(layout.num_images, engine.batch_size)))
        waiting: deque[Future[list[Future[bytes]]]] = deque()

        def images() -> Encoded:
            for task, following in zip_longest(tasks, tasks[1:]):
                waiting.append(pool.submit(compute, *task, following and following[1]))
                if len(waiting) > num_workers + _AHEAD:
                    yield from _results(waiting.popleft())
            while waiting:
                yield from _results(waiting.popleft())

        stream = images()
        for shard in shards:
            _write(layout, shard, stream, bar.advance)
    return count


def _tasks(shards: list[range], batches: list[range]) -> Iterator[tuple[range, range]]:
    """Yield (images that are wanted, batch they belong to) in order."""
    starts = [batch.start for batch in batches]
    for run in _runs(shards):
        for batch in batches[bisect_right(starts, run.start) - 1 : bisect_left(starts, run.stop)]:
            yield range(max(batch.start, run.start), min(batch.stop, run.stop)), batch


def _runs(shards: list[range]) -> list[range]:
    """Join shards that follow each other."""
    runs: list[range] = []
    for shard in shards:
        if runs and runs[-1].stop == shard.start:
            runs[-1] = range(runs[-1].start, shard.stop)
        else:
            runs.append(shard)
    return runs


def _results(computed: Future[list[Future[bytes]]]) -> Encoded:
    for image in computed.result():
        yield image.result()


def _write(layout: TarShards, shard: range, images: Encoded, advance: Callable[[int], None]) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        for index in shard:
            yield layout.member(index), next(images)
            advance(1)

    write_tar(layout.path(shard[0]), files())
    layout.note_finished(shard)
