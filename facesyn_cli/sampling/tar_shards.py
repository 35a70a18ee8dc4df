"""A sampled set as tar shards: which are missing, and the loop that writes images in order into one after another.

Image i lies in shard i // images_per_shard under the key `identity/sample`, as the record format `webdataset` has it. A
shard appears whole, by rename; then a note beside it records its content. Batches (or the blocks of a filter) are those
of the whole set, so that the images are the ones a folder would get. A batch that lies in two shards is computed once
where the shards are made one after the other, else for each of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.names import escape_folder, escape_stem
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.data.tar_archive import write_tar
from facesyn_cli.progress import progress
from facesyn_cli.sampling.image_folder import DrawUnit, ImageFolder, WriteOptions
from facesyn_cli.sampling.workers import one_core_each

_AHEAD = 2           # batches computed or queued beyond those at work
_NOTES = ".shards"

Encoded = Iterator[bytes]  # the files of the images of a shard, in order


@dataclass(frozen=True)
class TarShards(ImageFolder):
    """Images in tar files `images/images-000000.tar`, ...; methods as of `ImageFolder`, with shards as units of work.

    Args:
        images_per_shard: Images of a shard; the last has the rest.
    """

    images_per_shard: int = 10_000

    kind = "RecordSet"
    NAME = "images"

    @property
    def shards(self) -> list[range]:
        """Numbers of the images of each shard."""
        return fixed_batches(self.num_images, self.images_per_shard)

    def path(self, index: int) -> Path:
        """Return the shard of image number `index`."""
        return self.folder / self.NAME / f"{self.NAME}-{index // self.images_per_shard:06d}.tar"

    def member(self, index: int) -> str:
        """Return the name of image number `index` in its shard."""
        row, sample = divmod(index, self.per_id)
        return f"{escape_folder(self.identities[row])}/{escape_stem(str(sample))}{self.suffix}"

    def finished(self) -> set[int]:
        """Return the numbers of all images that lie in finished shards."""
        return {index for shard in self.shards if self._is_finished(shard) for index in shard}

    def unfinished(
        self, units: list[range], done: set[int], part: tuple[int, int] | None, is_judged: Callable[[range], bool]
    ) -> list[range]:
        """Return the shards that have to be made; arguments as of `ImageFolder.unfinished`."""
        index, count = part or (1, 1)
        mine = self.share(self.shards, index - 1, count)
        return [shard for shard in mine if not self._is_finished(shard) or not is_judged(shard)]

    def share(self, todo: Sequence[range], index: int, count: int) -> list[range]:
        """Return the share of process `index` (0-based) as neighbors, so that few batches lie in two shares."""
        return list(todo[index * len(todo) // count : (index + 1) * len(todo) // count])

    def write(
        self, todo: list[range], units: list[range], draw: DrawUnit, done: set[int], options: WriteOptions
    ) -> int:
        """Compute and write whole shards; return how many images they hold. Arguments as of `ImageFolder.write`.

        Killed at any moment, all shards but the ones being written are finished work.

        Raises:
            UserError: An image could not be made, or a shard not be written.
        """
        count = sum(map(len, todo))
        with (
            progress("sample", options.shown_before + count, done=options.shown_before) as bar,
            ThreadPoolExecutor(options.writers, "encode") as encoders,
            one_core_each(options.workers, options.device) as pool,
        ):

            def compute(rows: range, unit: range, following: range | None) -> list[Future[bytes]]:
                signals.check()
                pixels_of = draw(unit, following)

                def encoded(index: int) -> bytes:
                    return options.encode(options.pixels(pixels_of, index - unit[0], index))

                return [encoders.submit(encoded, index) for index in rows]

            tasks = list(shard_tasks(todo, units))
            waiting: deque[Future[list[Future[bytes]]]] = deque()

            def images() -> Encoded:
                for task, following in zip_longest(tasks, tasks[1:]):
                    waiting.append(pool.submit(compute, *task, following and following[1]))
                    if len(waiting) > options.workers + _AHEAD:
                        yield from _results(waiting.popleft())
                while waiting:
                    yield from _results(waiting.popleft())

            stream = images()
            for shard in todo:
                self._write_shard(shard, stream, lambda count: bar.advance(count, **options.info()))
        return count

    def _write_shard(self, shard: range, images: Encoded, advance: Callable[[int], None]) -> None:
        def files() -> Iterator[tuple[str, bytes]]:
            for index in shard:
                yield self.member(index), next(images)
                advance(1)

        write_tar(self.path(shard[0]), files())
        write_json(self._note(shard), self._content(shard))

    def _is_finished(self, shard: range) -> bool:
        """True when the shard on disk agrees with its note."""
        note = self._note(shard)
        return note.is_file() and self.path(shard[0]).is_file() and read_json(note) == self._content(shard)

    def _note(self, shard: range) -> Path:
        return self.folder / _NOTES / f"{shard[0] // self.images_per_shard:06d}.json"

    def _content(self, shard: range) -> dict[str, Any]:
        names = {"first": self.member(shard[0]), "last": self.member(shard[-1])}
        return {**names, "images": len(shard), "bytes": self.path(shard[0]).stat().st_size}


def shard_tasks(shards: list[range], units: list[range]) -> Iterator[tuple[range, range]]:
    """Yield, in order, (images to write, unit they are computed in)."""
    starts = [unit.start for unit in units]
    for run in _runs(shards):
        for unit in units[bisect_right(starts, run.start) - 1 : bisect_left(starts, run.stop)]:
            yield range(max(unit.start, run.start), min(unit.stop, run.stop)), unit


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
