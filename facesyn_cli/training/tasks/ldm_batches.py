"""Batches of LDM training: latents, contexts and everything random, as functions of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from facesyn_cli.diffusion.loss import TrainingNoise, training_noise
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.training.data_order import batch_rows


class Rows(NamedTuple):
    """Which images, and which of them mirrored."""

    rows: list[int]
    is_mirrored: list[bool]


class Batch(NamedTuple):
    """The share of one process in the global batch of one step, on the CPU."""

    latents: Tensor           # (b, c, h, w) as the autoencoder gives them
    contexts: Tensor | None   # (b, E); None for an unconditional denoiser
    draws: TrainingNoise


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
        num_timesteps: T.
        context_dropout: Probability that an image trains under the empty context.
        component_dropout: Probability of CPD.
        context_width: Width of the projected context.
    """

    seed: int
    batch_size: int
    places: range
    train_rows: Sequence[int]
    flip: float
    latent_shape: tuple[int, int, int]
    num_timesteps: int
    context_dropout: float
    component_dropout: float
    context_width: int

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
            self.seed, step, self.places, self.latent_shape, self.num_timesteps,
            self.context_dropout, self.component_dropout, self.context_width,
        )
        # The denoiser scales the kept components itself, so it takes a boolean mask.
        return draws if draws.component_mask is None else draws._replace(component_mask=draws.component_mask > 0)


def training_batches(
    plan: BatchPlan, latents: Iterable[Tensor], contexts: Tensor | None, steps: range
) -> Iterator[Batch]:
    """Yield the batches of some steps.

    Args:
        plan: Their composition.
        latents: For every step in turn the latents of `plan.rows(step)`.
        contexts: (N, E) context of every image of the set; None for an unconditional denoiser.
        steps: The steps.
    """
    for step, step_latents in zip(steps, latents, strict=False):
        rows = plan.rows(step).rows
        yield Batch(step_latents, None if contexts is None else contexts[rows], plan.draws(step))
