"""The training objective: mean squared error of the prediction.

Ho et al. 2020, arXiv:2006.11239, Eq. 14: E || eps - eps_theta(sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps, t) ||^2, or the
same for v (`diffusion/schedule.py`) or x_0, optionally weighted by the signal-to-noise ratio; or for the velocity of a
rectified flow (`diffusion/flow.py`).

Random numbers are drawn per image from (seed, step, index), so the loss of a global batch does not depend on the number
of processes or the accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.diffusion.schedule import NoiseSchedule


class TrainingNoise(NamedTuple):
    """The random numbers of one training step, on the CPU; a tuple in this order.

    Shapes: B images of this process, W components of the projected context.
    """

    t: Tensor                       # (B,) int64 in [0, T); of a flow float32 in [0, 1000]
    noise: Tensor                   # (B, C, H, W) float32 N(0, 1)
    drop_context: Tensor | None     # (B,) bool, True: train without context; None if never
    component_mask: Tensor | None   # (B, W) bool, True: keep this component of the projected context; None at p = 0

    def to(self, device: torch.device | str) -> TrainingNoise:
        """Return the same on another device."""
        return TrainingNoise(*(None if x is None else x.to(device, non_blocking=True) for x in self))


def training_noise(
    seed: int, step: int, indices: Sequence[int], shape: tuple[int, ...], schedule: NoiseSchedule | FlowSchedule,
    context_dropout: float, component_dropout: float, context_width: int,
) -> TrainingNoise:
    """Draw timestep, noise and dropout masks of some images of one optimizer step.

    Args:
        seed: The run's seed.
        step: Optimizer step.
        indices: Positions of the images in the global batch, each in one process.
        shape: (C, H, W) of one latent.
        schedule: Distribution of the timesteps.
        context_dropout: Probability that an image trains under the empty context (0 as published).
        component_dropout: p of CPD, the element-wise dropout of the projected context (Boutros et al.
            2023, arXiv:2308.04995); one mask per image and forward pass. The denoiser scales the kept components by
            1 / (1 - p).
        context_width: W, width of the projected context (256).
    """

    def draw(index: int) -> tuple[float, np.ndarray, bool, np.ndarray]:
        # One generator per image with a fixed order of draws: timesteps and noise do not depend on dropout.
        random = keyed_random("train", seed, step, index)
        t, noise = schedule.draw_timestep(random), random.standard_normal(shape).astype(np.float32)
        drop_context = bool(random.random_sample() < context_dropout)
        mask_size = context_width if component_dropout > 0 else 0
        return t, noise, drop_context, random.random_sample(mask_size) >= component_dropout

    t, noise, drop_context, component_mask = zip(*map(draw, indices), strict=True)
    return TrainingNoise(torch.tensor(t),  # int64 of integers, else float32
                         torch.from_numpy(np.stack(noise)),
                         torch.tensor(drop_context) if context_dropout > 0 else None,
                         torch.from_numpy(np.stack(component_mask)) if component_dropout > 0 else None)


def diffusion_loss(
    denoiser: nn.Module, schedule: NoiseSchedule | FlowSchedule, latents: Tensor, contexts: Tensor | None,
    draws: TrainingNoise, min_snr_gamma: float | None = None,
) -> Tensor:
    """Return the mean squared error per image, (B,) float32; its mean is the loss. Arguments as of `predict`."""
    _, output = predict(denoiser, schedule, latents, contexts, draws)
    return squared_error(output, schedule, latents, draws, min_snr_gamma)


def predict(
    denoiser: nn.Module, schedule: NoiseSchedule | FlowSchedule, latents: Tensor, contexts: Tensor | None,
    draws: TrainingNoise, **options: bool,
) -> tuple[Tensor, Tensor]:
    """Return the noisy latents and the denoiser's prediction, both (B, C, H, W), the latter float32.

    Args:
        denoiser: `denoiser(x, t, context, drop_context=..., component_mask=...)` -> its prediction.
        schedule: Noise levels and prediction target.
        latents: (B, C, H, W) clean latents.
        contexts: (B, E) contexts; None for an unconditional denoiser, which takes no masks.
        draws: From `training_noise`, on the device of the latents.
        options: Further arguments of the denoiser: `with_early=True` for two predictions, (2, B, C, H, W).
    """
    x = schedule.add_noise(latents, draws.noise, draws.t)
    if contexts is None:
        return x, denoiser(x, draws.t, None, **options).float()
    output = denoiser(
        x, draws.t, contexts, drop_context=draws.drop_context, component_mask=draws.component_mask, **options
    )
    return x, output.float()


def squared_error(
    output: Tensor, schedule: NoiseSchedule | FlowSchedule, latents: Tensor, draws: TrainingNoise,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Return the mean squared error per image, (B,) float32.

    Args:
        output: (B, C, H, W) prediction.
        schedule: Prediction target.
        latents: (B, C, H, W) clean latents.
        draws: Noise and timesteps of the prediction.
        min_snr_gamma: Weight each image by `NoiseSchedule.min_snr_weight`; None: equal weights, as a flow needs.
    """
    losses = (output - schedule.target(latents, draws.noise, draws.t)).square().flatten(1).mean(dim=1)
    return losses if min_snr_gamma is None else losses * schedule.min_snr_weight(draws.t, min_snr_gamma)
