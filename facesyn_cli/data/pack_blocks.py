"""Images in the form in which a record format stores them: made on the way, or before in blocks on disk.

Reading, checking and encoding images is what `pack` takes its time for, and an image needs no other one for it. So
separate runs and processes do that for blocks of images, each a file `<start>-<stop>` of

    status (1 byte), length (4 bytes), image or reason        for every image

and the run that finds all blocks writes the set from them, whatever its format, like a run that was alone.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pack_order import PackItem
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress

BLOCK_SIZE = 1024  # images
_AHEAD, _CHUNK = 2, 8  # chunks per thread that may wait; images a thread takes at once
_HEAD = struct.Struct("<BI")
_KEPT, _CUT, _UNREADABLE = range(3)


@dataclass(frozen=True, slots=True)
class FittedImage:
    """An image in the form that a format stores.

    Args:
        data: Encoded image; None: it could not be read.
        is_cut: It was not square, and only its central square is kept.
        reason: Why it could not be read.
    """

    data: bytes | None
    is_cut: bool = False
    reason: str = ""


@dataclass(frozen=True)
class PackImages:
    """The images of a set, in the form that its format stores.

    Args:
        items: All images, in the order of the set.
        fit: Reads one and encodes it; called in threads.
        workers: Number of threads; 0: none.
        folder: Where finished blocks lie; need not exist.
    """

    items: list[PackItem]
    fit: Callable[[PackItem], FittedImage]
    workers: int
    folder: Path

    def blocks(self, part: tuple[int, int] | None = None) -> list[range]:
        """Return the numbers of the images of each block, of part i of n or of all."""
        return blocks_of(len(self.items), part)

    def missing(self, blocks: list[range], done: int) -> list[range]:
        """Return those blocks that are not finished, where the first `done` images are packed."""
        return [block for block in blocks if block.stop > done and not self._path(block).is_file()]

    def make(self, blocks: list[range], processes: Processes) -> None:
        """Make blocks, divided over all processes. A collective.

        Raises:
            UserError: In every process, if one cannot read an input or write a block.
            Stopped: In every process, if one received a stop signal.
        """
        mine = share(blocks, processes.rank, processes.world_size)
        images = self._fitted(self.items[number] for block in mine for number in block)
        with processes.together(), progress("pack", sum(map(len, mine))) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd images that it can read
            for block in mine:
                with write_atomically(self._path(block)) as temporary, open(temporary, "wb") as file:
                    for image in islice(images, len(block)):
                        data = image.reason.encode("utf-8", "backslashreplace") if image.data is None else image.data
                        status = _UNREADABLE if image.data is None else _CUT if image.is_cut else _KEPT
                        file.write(_HEAD.pack(status, len(data)) + data)
                bar.advance(len(block))
                signals.check()

    def images(self, done: int) -> Iterator[FittedImage]:
        """Yield all images after the first `done`, from finished blocks where there are any.

        Raises:
            UserError: A block is damaged.
        """
        left = [block for block in self.blocks() if block.stop > done]
        for is_finished, group in groupby(left, lambda block: self._path(block).is_file()):
            some = list(group)
            first = max(some[0].start, done)
            if is_finished:
                yield from islice((image for block in some for image in self._read(block)), first - some[0].start, None)
            else:
                yield from self._fitted(iter(self.items[first : some[-1].stop]))

    def remove(self, block: range) -> None:
        """Remove a block, if it is there."""
        self._path(block).unlink(missing_ok=True)

    def _fitted(self, items: Iterator[PackItem]) -> Iterator[FittedImage]:
        return ordered_map(self.fit, items, self.workers, _AHEAD, _CHUNK)

    def _read(self, block: range) -> Iterator[FittedImage]:
        path = self._path(block)
        with open(path, "rb") as file:
            for _ in block:
                head = file.read(_HEAD.size)
                status, size = _HEAD.unpack(head) if len(head) == _HEAD.size else (_UNREADABLE, -1)
                data = file.read(max(size, 0))
                if len(data) != size or status > _UNREADABLE:
                    raise UserError(f"{path} is damaged; remove it and run the same command again")
                is_read = status != _UNREADABLE
                yield FittedImage(data, status == _CUT) if is_read else FittedImage(None, reason=data.decode())

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:09d}-{block.stop:09d}"


def blocks_of(num_images: int, part: tuple[int, int] | None = None) -> list[range]:
    """Return the numbers of the images of each block; only those of part i of n where it is given, i from 1."""
    index, count = part or (1, 1)
    return share(fixed_batches(num_images, BLOCK_SIZE), index - 1, count)
