"""Batches of autoencoder training: images, mirrored or not, and noise, as functions of (seed, step)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.console import log
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.sharding import fixed_batches, row_batches, share
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.training.data_order import batch_rows

_DECODE_BATCH = 256


class AutoencoderBatch(NamedTuple):
    """The share of one process in the global batch of one step, on the CPU."""

    pixels_u8: Tensor       # (b, S, S, 3) uint8, not mirrored
    is_mirrored: Tensor     # (b,) bool
    noise: Tensor           # (b, c, s, s) standard normal
    latents: Tensor | None  # (b, c, s, s) of a teacher, of the mirrored images

    def pixels(self, device: torch.device) -> Tensor:
        """Return (b, 3, S, S) in [-1, 1] on a device, mirrored where `is_mirrored`."""
        pixels_u8 = self.pixels_u8.to(device)
        is_mirrored = self.is_mirrored.to(device)[:, None, None, None]
        pixels = to_pixels(torch.where(is_mirrored, pixels_u8.flip(2), pixels_u8))
        return pixels.contiguous(memory_format=torch.channels_last)  # the faster layout for convolutions


class DecodedFaces:
    """Images decoded once, each in one of the processes, and held in the memory of all of them. Built by all together.

    Args:
        faces: The images.
        rows: Which of them are needed.
        workers: Worker processes that decode; 0 decodes in this one.
        processes: Those of the training.

    Raises:
        UserError: An image cannot be read.
    """

    def __init__(self, faces: FaceImages, rows: Sequence[int], workers: int, processes: Processes) -> None:
        self._place = {row: place for place, row in enumerate(rows)}
        self._pixels_u8 = torch.zeros(len(rows), faces.size, faces.size, 3, dtype=torch.uint8)
        places, problem = fixed_batches(len(rows), _DECODE_BATCH), ""
        mine = share(places, processes.rank, processes.world_size)
        try:
            with progress("decode", sum(map(len, mine)), "images", 0) as bar:
                batches = image_batches(faces, [[rows[place] for place in part] for part in mine], workers)
                for part, pixels_u8 in zip(mine, batches, strict=True):
                    self._pixels_u8[part.start : part.stop] = pixels_u8
                    bar.advance(len(part))
        except UserError as error:
            problem = str(error)
        processes.raise_in_all(problem)
        if processes.world_size > 1:
            for part in self._pixels_u8.split(_DECODE_BATCH * processes.world_size):
                part.copy_(processes.sum(part.to(processes.device)))  # of one image and zeros

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return (n, S, S, 3) uint8."""
        return self._pixels_u8[[self._place[row] for row in rows]]

    def stream(self, choices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each choice of rows."""
        return map(self.read, choices)


class StoredFaces:
    """Images decoded by worker processes whenever they are needed.

    Args:
        faces: The images.
        workers: Processes that decode; 0 decodes in this one.
    """

    def __init__(self, faces: FaceImages, workers: int) -> None:
        self._faces, self._workers = faces, workers

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return (n, S, S, 3) uint8."""
        return torch.cat(list(self.stream(row_batches(rows, _DECODE_BATCH))))

    def stream(self, choices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each choice of rows; choices may be endless."""
        return image_batches(self._faces, choices, self._workers)


def num_bytes(num_images: int, size: int) -> int:
    """Return the memory that decoded images take."""
    return num_images * 3 * size**2


def open_faces(
    faces: FaceImages, rows: Sequence[int], memory_gib: float, workers: int, processes: Processes
) -> DecodedFaces | StoredFaces:
    """Return the images, decoded to memory where they take at most `memory_gib`, and log which. A collective."""
    size = num_bytes(len(rows), faces.size)
    if size <= memory_gib * 2**30:
        log.info(f"images are decoded once, to memory: {size / 2**20:.0f} MiB")
        return DecodedFaces(faces, rows, workers, processes)
    log.info(f"images are decoded at every step: in memory they would take {size / 2**30:.1f} GiB, more than "
             f"memory_gib={memory_gib:g}")
    return StoredFaces(faces, workers)


@dataclass(frozen=True)
class AutoencoderBatchPlan:
    """Composition of the batches, apart from the images themselves.

    Args:
        seed: Seed of the training.
        batch_size: Global batch.
        places: Which places of the global batch this process works on.
        train_rows: Rows of the images to train on.
        flip: Probability of training on the mirror image.
        latent_shape: (c, s, s).
    """

    seed: int
    batch_size: int
    places: range
    train_rows: Sequence[int]
    flip: float
    latent_shape: tuple[int, int, int]

    def rows(self, step: int) -> list[int]:
        """Return the images of this process in one step."""
        order = batch_rows(self.seed, step, self.batch_size, len(self.train_rows))
        return [int(self.train_rows[order[place]]) for place in self.places]

    def batches(
        self, images: DecodedFaces | StoredFaces, steps: range, latents: LatentCache | None = None
    ) -> Iterator[AutoencoderBatch]:
        """Yield the batches of some steps, with latents of a teacher where there are any."""
        waiting: deque[tuple[int, list[int]]] = deque()

        def rows_ahead() -> Iterator[list[int]]:
            for step in steps:
                waiting.append((step, self.rows(step)))
                yield waiting[-1][1]

        for pixels_u8 in images.stream(rows_ahead()):
            step, rows = waiting.popleft()
            generators = [keyed_random("autoencoder", self.seed, step, place) for place in self.places]
            is_mirrored = [bool(generator.random_sample() < self.flip) for generator in generators]
            noise = np.stack([generator.standard_normal(self.latent_shape) for generator in generators])
            yield AutoencoderBatch(
                pixels_u8, torch.tensor(is_mirrored), torch.from_numpy(noise).float(),
                None if latents is None else latents.read(rows, is_mirrored),
            )
