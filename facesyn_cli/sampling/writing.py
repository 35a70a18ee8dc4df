"""The loop of a sampling run: batches out of the engine, missing images into the set."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed
from functools import partial
from itertools import zip_longest

import numpy as np

from facesyn_cli import signals
from facesyn_cli.console import progress
from facesyn_cli.data.image_writer import ImageWriter
from facesyn_cli.sampling.engine import BatchEngine
from facesyn_cli.sampling.layout import ImageFolder
from facesyn_cli.sampling.workers import one_core_each

_MAX_WAITING = 256  # images waiting to be written


def write_batches(
    engine: BatchEngine,
    batches: list[range],
    done: set[int],
    layout: ImageFolder,
    encode: Callable[[np.ndarray], bytes],
    num_writers: int,
    num_workers: int,
    shown_before: int = 0,
    draw: Callable[[range], Callable[[int], np.ndarray]] | None = None,
    show: Callable[[int, np.ndarray], None] | None = None,
) -> int:
    """Compute batches and write those of their images that are missing; return how many were.

    Args:
        engine: Computes the batches.
        batches: Batches (or blocks, where `draw` is given) that have a missing image.
        done: Numbers of the images that are there already.
        layout: Where the images go.
        encode: (H, W, 3) uint8 -> bytes of the file.
        num_writers: Threads that encode and write.
        num_workers: Batches computed at once.
        shown_before: Images the progress bar counts as done at the start.
        draw: Image numbers -> function from a row to its pixels; None: `engine.start`.
        show: Gets each image and its number, in the threads that encode; None: nobody looks.

    Raises:
        UserError: An image could not be made or written.
    """
    missing = sum(i not in done for batch in batches for i in batch)

    def make(batch: range, then: range | None) -> None:
        signals.check()
        pixels_of = draw(batch) if draw else engine.start(batch, then=then)
        for row, index in enumerate(batch):
            if index not in done:
                writer.put(layout.path(index), partial(pixels_shown, pixels_of, row, index, show))

    with progress("sample", shown_before + missing, done=shown_before) as bar:
        with (
            ImageWriter(encode, num_writers, max(2 * engine.batch_size, _MAX_WAITING)) as writer,
            one_core_each(num_workers, engine.device) as pool,
        ):
            for made in as_completed([pool.submit(make, *pair) for pair in zip_longest(batches, batches[1:])]):
                made.result()
                bar.advance(shown_before + writer.written - bar.done)
        bar.advance(shown_before + writer.written - bar.done)  # written after the last batch
    return missing


def pixels_shown(
    pixels_of: Callable[[int], np.ndarray], row: int, index: int, show: Callable[[int, np.ndarray], None] | None
) -> np.ndarray:
    """Return the pixels of one row of a batch, image number `index`, after they were shown."""
    pixels_u8 = pixels_of(row)
    if show is not None:
        show(index, pixels_u8)
    return pixels_u8
