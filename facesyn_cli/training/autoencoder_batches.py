"""What one step of autoencoder training sees: images, mirrored or not, and noise, as functions of (seed, step)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from facesyn_cli.console import progress
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.training.data_order import batch_rows

_DECODE_BATCH = 256


class AutoencoderBatch(NamedTuple):
    """The share of one process in the global batch of one step."""

    pixels: Tensor  # (b, 3, S, S) in [-1, 1]
    noise: Tensor   # (b, c, s, s) standard normal

    def to(self, device: torch.device) -> AutoencoderBatch:
        """Return the batch on a device."""
        return AutoencoderBatch(self.pixels.to(device), self.noise.to(device))


class DecodedFaces:
    """All images of a set in memory, decoded once.

    Args:
        faces: The images.
        rows: Which of them are needed.
        workers: Processes that decode; 0 decodes in this one.
    """

    def __init__(self, faces: FaceImages, rows: Sequence[int], workers: int) -> None:
        self._place = {row: place for place, row in enumerate(rows)}
        self._pixels_u8 = torch.empty(len(rows), faces.size, faces.size, 3, dtype=torch.uint8)
        batches = [[rows[place] for place in batch] for batch in fixed_batches(len(rows), _DECODE_BATCH)]
        start = 0
        with progress("decode", len(rows), "images", 0) as bar:
            for part in image_batches(faces, batches, workers):
                self._pixels_u8[start : start + len(part)] = part
                start += len(part)
                bar.advance(len(part))

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return (n, S, S, 3) uint8."""
        return self._pixels_u8[[self._place[row] for row in rows]]

    def stream(self, choices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each choice of rows."""
        return map(self.read, choices)


class StoredFaces:
    """Images decoded whenever they are needed, by worker processes.

    Args:
        faces: The images.
        workers: Processes that decode; 0 decodes in this one.
    """

    def __init__(self, faces: FaceImages, workers: int) -> None:
        self._faces, self._workers = faces, workers

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return (n, S, S, 3) uint8."""
        batches = [[rows[place] for place in batch] for batch in fixed_batches(len(rows), _DECODE_BATCH)]
        return torch.cat(list(image_batches(self._faces, batches, self._workers)))

    def stream(self, choices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """Yield the images of each choice of rows; choices may be endless."""
        return image_batches(self._faces, choices, self._workers)


@dataclass(frozen=True)
class AutoencoderBatchPlan:
    """Everything about batches that does not depend on the images themselves.

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

    def batches(self, images: DecodedFaces | StoredFaces, steps: range) -> Iterator[AutoencoderBatch]:
        """Yield the batches of some steps, on the CPU."""
        waiting: deque[int] = deque()

        def rows_ahead() -> Iterator[list[int]]:
            for step in steps:
                waiting.append(step)
                yield self.rows(step)

        for pixels_u8 in images.stream(rows_ahead()):
            yield self._batch(waiting.popleft(), pixels_u8)

    def _batch(self, step: int, pixels_u8: Tensor) -> AutoencoderBatch:
        generators = [keyed_random("autoencoder", self.seed, step, place) for place in self.places]
        is_mirrored = torch.tensor([generator.random_sample() < self.flip for generator in generators])
        noise = [torch.from_numpy(generator.standard_normal(self.latent_shape)).float() for generator in generators]
        pixels_u8 = torch.where(is_mirrored[:, None, None, None], pixels_u8.flip(2), pixels_u8)
        return AutoencoderBatch(to_pixels(pixels_u8), torch.stack(noise))
