"""A sampled set as image files `<identity>/<sample>.png`: which are missing, and the loop that writes them.

Images are numbered: number i is sample i % per_id of identity i // per_id.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from facesyn_cli import signals
from facesyn_cli.data.image_writer import ImageWriter
from facesyn_cli.data.sharding import share
from facesyn_cli.progress import progress
from facesyn_cli.sampling.workers import one_core_each

_MAX_WAITING = 256  # images waiting to be written

PixelsOf = Callable[[int], np.ndarray]               # row of a unit -> its (S, S, 3) uint8 pixels
DrawUnit = Callable[[range, range | None], PixelsOf]  # unit, the next one -> its pixels


@dataclass(frozen=True)
class WriteOptions:
    """How images are computed and written.

    Args:
        encode: (S, S, 3) uint8 -> bytes of the file.
        device: Where units are computed.
        workers: Units computed at once.
        writers: Threads that encode and write.
        max_waiting: Images that may wait to be written.
        shown_before: Images that the progress bar counts as done at the start.
        show: Called with the number and pixels of each image, in the threads that encode; None: nothing is shown.
        info: Returns what the progress shows beside the images.
    """

    encode: Callable[[np.ndarray], bytes]
    device: torch.device
    workers: int = 1
    writers: int = 4
    max_waiting: int = _MAX_WAITING
    shown_before: int = 0
    show: Callable[[int, np.ndarray], None] | None = None
    info: Callable[[], dict[str, int]] = dict

    def pixels(self, pixels_of: PixelsOf, row: int, index: int) -> np.ndarray:
        """Return the pixels of a row of a unit, image number `index`, after they were shown."""
        pixels_u8 = pixels_of(row)
        if self.show is not None:
            self.show(index, pixels_u8)
        return pixels_u8


@dataclass(frozen=True)
class ImageFolder:
    """Images as files `<identity>/<sample><suffix>`.

    Args:
        folder: Folder of the set.
        identities: Their names, in order.
        per_id: Images of each.
        suffix: Of the files, with its dot.
    """

    folder: Path
    identities: list[str]
    per_id: int
    suffix: str

    kind = "ImageSet"

    @property
    def num_images(self) -> int:
        """Images of the whole set."""
        return len(self.identities) * self.per_id

    def path(self, index: int) -> Path:
        """Return the file of image number `index`."""
        row, sample = divmod(index, self.per_id)
        return self.folder / self.identities[row] / f"{sample}{self.suffix}"

    def finished(self) -> set[int]:
        """Return the numbers of all images in the folder."""
        done = set()
        for row, name in enumerate(self.identities):
            try:
                with os.scandir(self.folder / name) as found:
                    files = {item.name for item in found if item.stat().st_size}
            except (FileNotFoundError, NotADirectoryError):
                continue
            first = row * self.per_id
            done.update(first + k for k in range(self.per_id) if f"{k}{self.suffix}" in files)
        return done

    def unfinished(
        self, units: list[range], done: set[int], part: tuple[int, int] | None, is_judged: Callable[[range], bool]
    ) -> list[range]:
        """Return the units that have an image to make.

        Args:
            units: Images that are computed together: all batches of the set, or all blocks of a filter.
            done: Numbers of the images that are finished.
            part: (i, n), i from 1: only the units of part i of n.
            is_judged: Tells whether the records of a filter of some images are there; see `RejectionSampling.judged`.
        """
        index, count = part or (1, 1)
        mine = share(units, index - 1, count)
        return [unit for unit in mine if not done.issuperset(unit) or not is_judged(unit)]

    def share(self, todo: list[range], index: int, count: int) -> list[range]:
        """Return the share of process `index` (0-based) of unfinished units."""
        return share(todo, index, count)

    def write(
        self, todo: list[range], units: list[range], draw: DrawUnit, done: set[int], options: WriteOptions
    ) -> int:
        """Compute units and write those of their images that are missing; return how many were.

        Args:
            todo: Units to compute, from `unfinished`.
            units: All units of the set.
            draw: Computes a unit.
            done: Numbers of the images that are there already.
            options: How images are computed and written.

        Raises:
            UserError: An image could not be made or written.
        """
        before = options.shown_before
        missing = sum(i not in done for unit in todo for i in unit)

        def make(unit: range, following: range | None) -> None:
            signals.check()
            pixels_of = draw(unit, following)
            for row, index in enumerate(unit):
                if index not in done:
                    writer.put(self.path(index), partial(options.pixels, pixels_of, row, index))

        with progress("sample", before + missing, done=before) as bar:
            with (
                ImageWriter(options.encode, options.writers, options.max_waiting) as writer,
                one_core_each(options.workers, options.device) as pool,
            ):
                for made in as_completed([pool.submit(make, *pair) for pair in zip_longest(todo, todo[1:])]):
                    made.result()
                    bar.advance(before + writer.written - bar.done, **options.info())
            bar.advance(before + writer.written - bar.done, **options.info())  # written after the last unit
        return missing
