"""Latents for training, from a cache on disk or from the encoder at every step, and their statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.console import progress
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.latent_cache import ENCODE_BATCH, LatentCache, channel_statistics
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.tasks.ldm_batches import Rows
from facesyn_cli.untrusted.parsing import validated

_STATISTICS_BATCH = 512


class _Statistics(BaseModel):
    """Content of the file of channel statistics."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class ChannelScale:
    """Normalizes latents to mean 0 and standard deviation 1 in each channel, and back.

    Args:
        mean: (1, c, 1, 1), on the device.
        std: (1, c, 1, 1), on the device.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: list[float] | None, std: list[float] | None, device: torch.device) -> ChannelScale:
        """Return the scale of measured statistics; None: the identity."""

        def channels(values: list[float] | None, default: float) -> Tensor:
            values = [default] if values is None else values
            return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        return cls(channels(mean, 0.0), channels(std, 1.0))

    def normalize(self, latents: Tensor) -> Tensor:
        """Return (B, c, h, w) latents as the denoiser takes them, on the device they are on."""
        return (latents - self.mean.to(latents.device)) / self.std.to(latents.device)

    def restore(self, latents: Tensor) -> Tensor:
        """Return normalized (B, c, h, w) latents as the autoencoder takes them."""
        return latents * self.std + self.mean


class CachedLatents:
    """Latents from the cache on disk.

    Args:
        cache: A complete cache.
    """

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return the (n, c, h, w) latents of some rows, not mirrored."""
        return self.cache.read(rows, [False] * len(rows))

    def stream(self, choices: Iterable[Rows]) -> Iterator[Tensor]:
        """Yield the latents of each choice of rows."""
        for choice in choices:
            yield self.cache.read(choice.rows, choice.is_mirrored)


class EncodedLatents:
    """Latents encoded when they are needed, from images that worker processes decode.

    Args:
        faces: The images.
        encode: Pixels (B, 3, S, S) in [-1, 1] on the CPU -> latents (B, c, h, w) on the CPU.
        workers: Processes that decode; 0 decodes in this one.
    """

    def __init__(self, faces: FaceImages, encode: Callable[[Tensor], Tensor], workers: int) -> None:
        self.faces, self.encode, self.workers = faces, encode, workers

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return the (n, c, h, w) latents of some rows, not mirrored."""
        batches = [[rows[place] for place in batch] for batch in fixed_batches(len(rows), ENCODE_BATCH)]
        return torch.cat([self.encode(to_pixels(u8)) for u8 in image_batches(self.faces, batches, self.workers)])

    def stream(self, choices: Iterable[Rows]) -> Iterator[Tensor]:
        """Yield the latents of each choice of rows; choices may be endless."""
        waiting: deque[list[bool]] = deque()

        def rows_ahead() -> Iterator[list[int]]:
            for choice in choices:
                waiting.append(choice.is_mirrored)
                yield choice.rows

        for pixels_u8 in image_batches(self.faces, rows_ahead(), self.workers):
            pixels = to_pixels(pixels_u8)
            is_mirrored = torch.tensor(waiting.popleft())[:, None, None, None]
            pixels = torch.where(is_mirrored, pixels.flip(-1), pixels)
            yield torch.cat([self.encode(part) for part in pixels.split(ENCODE_BATCH)])


def open_latents(
    cache: LatentCache | None, faces: FaceImages, encode: Callable[[Tensor], Tensor], workers: int,
    processes: Processes,
) -> CachedLatents | EncodedLatents:
    """Return the latents of the faces from a cache, filled first, or encoded when they are needed.

    Args:
        cache: The cache; None: none.
        faces: The images.
        encode: As of `EncodedLatents`.
        workers: Processes that decode images.
        processes: Those that fill the cache together.
    """
    if cache is None:
        return EncodedLatents(faces, encode, workers)
    fill_cache(cache, encode, workers, processes)
    return CachedLatents(cache)


def fill_cache(
    cache: LatentCache, encode: Callable[[Tensor], Tensor], workers: int, processes: Processes
) -> None:
    """Encode what is missing, spread over the processes; returns when the cache is complete. A collective."""
    missing = cache.missing()
    processes.barrier()  # all processes have listed the same missing parts
    if not missing:
        return
    numbers, problem = share(missing, processes.rank, processes.world_size), ""
    try:
        with progress("encode", len(cache.faces), "images", cache.num_done()) as bar:
            cache.fill(numbers, encode, bar, workers)
    except UserError as error:
        problem = str(error)
    processes.raise_in_all(problem)


def latent_statistics(
    path: Path, latents: CachedLatents | EncodedLatents, rows: Sequence[int], processes: Processes
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, measured once and stored in a file. A collective.

    Args:
        path: The file.
        latents: Where the latents come from.
        rows: Images to measure.
        processes: The first one measures.
    """

    def measure() -> tuple[list[float], list[float]]:
        if not path.is_file():
            parts = [list(rows[start : start + _STATISTICS_BATCH]) for start in range(0, len(rows), _STATISTICS_BATCH)]
            mean, std = channel_statistics(latents.read(part) for part in parts)
            write_json(path, {"mean": mean, "std": std, "images": len(rows)})
        measured = validated(_Statistics, read_json(path), path, "mean and std of the latents' channels")
        return measured.mean, measured.std

    return processes.from_first(measure)
