"""Batches of LDM training: latents from a cache or the encoder, contexts and everything random of each (seed, step)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.latent_cache import ENCODE_BATCH, LatentCache, channel_statistics
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.sharding import row_batches, share
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.loss import TrainingNoise, training_noise
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.progress import progress
from facesyn_cli.training.data_order import batch_rows
from facesyn_cli.training.tasks.ldm_inputs import evenly
from facesyn_cli.untrusted.parsing import validated

_STATISTICS_IMAGES, _STATISTICS_BATCH = 10_000, 512


class Rows(NamedTuple):
    """Which images, and which of them mirrored."""

    rows: list[int]
    is_mirrored: list[bool]


class Batch(NamedTuple):
    """The share of one process in the global batch of one step, on the CPU."""

    latents: Tensor           # (b, c, h, w) as the autoencoder gives them
    contexts: Tensor | None   # (b, E), or (b, E + 1) with the yaw; None for an unconditional denoiser
    draws: TrainingNoise

    def pinned(self) -> Batch:
        """Return the same in pinned memory, from which it is copied to a GPU while the host continues."""
        latents, contexts, draws = self
        pinned = TrainingNoise(*(None if part is None else part.pin_memory() for part in draws))
        return Batch(latents.pin_memory(), None if contexts is None else contexts.pin_memory(), pinned)


@dataclass(frozen=True)
class BatchPlan:
    """Composition of the batches, apart from the images themselves.

    Args:
        seed: Seed of the training.
        batch_size: Global batch.
        places: Which places of the global batch this process works on.
        train_rows: Rows of the images to train on.
        flip: Probability of training on the mirror image.
        latent_shape: (c, h, w).
        schedule: Noise schedule or flow, which draws the timesteps.
        context_dropout: Probability that an image trains under the empty context.
        component_dropout: Probability of CPD.
        context_width: Width of the projected context.
        pose_dropout: Probability that an image trains without its yaw.
    """

    seed: int
    batch_size: int
    places: range
    train_rows: Sequence[int]
    flip: float
    latent_shape: tuple[int, int, int]
    schedule: NoiseSchedule | FlowSchedule
    context_dropout: float
    component_dropout: float
    context_width: int
    pose_dropout: float = 0.0

    def rows(self, step: int) -> Rows:
        """Return the images of one step."""
        order = batch_rows(self.seed, step, self.batch_size, len(self.train_rows))
        is_mirrored = [
            bool(keyed_random("flip", self.seed, step, place).random_sample() < self.flip) for place in self.places
        ]
        return Rows([int(self.train_rows[order[place]]) for place in self.places], is_mirrored)

    def draws(self, step: int) -> TrainingNoise:
        """Return noise, timesteps and dropout masks of one step; `component_mask` is True where CPD keeps."""
        draws = training_noise(
            self.seed, step, self.places, self.latent_shape, self.schedule,
            self.context_dropout, self.component_dropout, self.context_width,
        )
        # The denoiser scales the kept components itself, so it takes a boolean mask.
        return draws if draws.component_mask is None else draws._replace(component_mask=draws.component_mask > 0)


    def turned(self, yaw: Tensor, rows: Rows, step: int) -> Tensor:
        """Return the yaw (b,) of the images of one step: negative for mirror images, NaN where it is dropped."""
        is_dropped = torch.tensor([
            bool(keyed_random("pose", self.seed, step, place).random_sample() < self.pose_dropout)
            for place in self.places
        ])
        return torch.where(torch.tensor(rows.is_mirrored), -yaw, yaw).masked_fill(is_dropped, torch.nan)


def training_batches(
    plan: BatchPlan, latents: Iterable[Tensor], contexts: Tensor | None, steps: range,
    context_size: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of some steps.

    Args:
        plan: Their composition.
        latents: For every step in turn the latents of `plan.rows(step)`.
        contexts: (N, E) context of every image of the set, or (N, E + 1) with the yaw; None for an unconditional
            denoiser.
        steps: The steps.
        context_size: E; None: there is no yaw.
    """
    for step, step_latents in zip(steps, latents, strict=True):
        rows = plan.rows(step)
        chosen = None if contexts is None else contexts[rows.rows]
        if chosen is not None and context_size is not None and chosen.shape[1] > context_size:
            chosen[:, context_size] = plan.turned(chosen[:, context_size], rows, step)
        yield Batch(step_latents, chosen, plan.draws(step))


@dataclass(frozen=True)
class CachedLatents:
    """Latents from the cache on disk.

    Args:
        cache: A complete cache.
    """

    cache: LatentCache

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return the (n, c, h, w) latents of some rows, not mirrored."""
        return self.cache.read(rows, [False] * len(rows))

    def stream(self, choices: Iterable[Rows]) -> Iterator[Tensor]:
        """Yield the latents of each choice of rows."""
        for choice in choices:
            yield self.cache.read(choice.rows, choice.is_mirrored)


@dataclass(frozen=True)
class EncodedLatents:
    """Latents encoded when they are needed, from images that worker processes decode.

    Args:
        faces: The images.
        encode: Pixels (B, 3, S, S) in [-1, 1] on the CPU -> latents (B, c, h, w) on the CPU.
        workers: Processes that decode; 0 decodes in this one.
    """

    faces: FaceImages
    encode: Callable[[Tensor], Tensor]
    workers: int

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return the (n, c, h, w) latents of some rows, not mirrored."""
        batches = image_batches(self.faces, row_batches(rows, ENCODE_BATCH), self.workers)
        return torch.cat([self.encode(to_pixels(pixels_u8)) for pixels_u8 in batches])

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


class _Statistics(BaseModel):
    """Content of the file of channel statistics."""

    mean: list[float]
    std: list[float]


def latent_statistics(
    folder: Path, latents: CachedLatents | EncodedLatents, train_rows: Sequence[int], processes: Processes
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, measured once and stored in a folder. A collective.

    Args:
        folder: Output folder of the training.
        latents: The latents.
        train_rows: Rows of the photos to train on; up to `_STATISTICS_IMAGES` of them are measured.
        processes: Those of the training; the first one measures.
    """
    path, rows = folder / "latent_statistics.json", evenly(train_rows, _STATISTICS_IMAGES)

    def measure() -> tuple[list[float], list[float]]:
        if not path.is_file():
            mean, std = channel_statistics(latents.read(part) for part in row_batches(rows, _STATISTICS_BATCH))
            write_json(path, {"mean": mean, "std": std, "images": len(rows)})
        measured = validated(_Statistics, read_json(path), path, "mean and std of the latents' channels")
        return measured.mean, measured.std

    return processes.from_first(measure)
