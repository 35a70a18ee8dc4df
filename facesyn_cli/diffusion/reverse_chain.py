"""The interface of schedulers, and the reverse chain of DDIM with ancestral DDPM sampling as its stochastic limit.

Song et al. 2021, arXiv:2010.02502, Eq. 12 and 16, with a = ab_t and p = ab_prev:

    x0     = (x_t - sqrt(1 - a) eps) / sqrt(a)
    sigma  = eta sqrt((1 - p) / (1 - a)) sqrt(1 - a / p)
    x_prev = sqrt(p) x0 + sqrt(1 - p - sigma^2) eps + sigma z,    z ~ N(0, 1)

A network that predicts v gives (Salimans & Ho 2022, arXiv:2202.00512, App. D)

    x0 = sqrt(a) x_t - sqrt(1 - a) v,    eps = sqrt(1 - a) x_t + sqrt(a) v,

which holds at a = 0 too; a network that predicts x0 gives eps = (x_t - sqrt(a) x0) / sqrt(1 - a).

eta = 1 is the posterior of Ho et al. 2020, arXiv:2006.11239, Eq. 7. Their other choice of variance has the same mean
and noise of variance beta = 1 - a / p, except after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.errors import UserError


class Scheduler(Protocol):
    """Sampler of one batch, from noise to latents; the interface that builders of the plugin kind `scheduler` make.

    Shapes: B batch, C channels, H x W latent grid; noise, x and the output are (B, C, H, W) float32.
    """

    timesteps: Sequence[float]  # timestep of each network evaluation, one evaluation per step
    is_continuous: bool = False  # the network takes all timesteps as float32; else integers as int64

    def start(self, noise: Tensor) -> Tensor:
        """Return x before the first step, from N(0, 1) noise; by default the noise."""
        return noise

    def model_input(self, x: Tensor, index: int) -> Tensor:
        """Return the network input at step `index`, counted from 0; by default x."""
        return x

    def step(self, output: Tensor, index: int, x: Tensor, draw_noise: Callable[[int], Tensor]) -> Tensor:
        """Return x after step `index`.

        Args:
            output: Network output at `model_input(x, index)` and `timesteps[index]`: eps, v, x_0 or a velocity.
            index: Number of the step; steps are called in order, each once.
            x: Result of `start` or the step before.
            draw_noise: Step -> (B, C, H, W) noise; called by stochastic schedulers only.
        """


class ReverseChain(Scheduler):
    """A stateless scheduler over given timesteps.

    Args:
        timesteps: Timesteps of the network evaluations, descending.
        alpha_bars: (steps,) alpha_bar of each of them.
        previous_alpha_bars: (steps,) alpha_bar after each step; 1 after the last one if the result is free of noise.
        eta: 0 is deterministic, 1 is ancestral.
        large_variance: Add noise of variance beta instead of the posterior's; needs eta 1.
        prediction: Prediction target of the network: `epsilon`, `v` or `x0`.
    """

    def __init__(
        self, timesteps: Sequence[int], alpha_bars: np.ndarray, previous_alpha_bars: np.ndarray, eta: float = 0.0,
        large_variance: bool = False, prediction: str = "epsilon",
    ) -> None:
        self.timesteps = tuple(timesteps)
        a, p = np.asarray(alpha_bars, np.float64), np.asarray(previous_alpha_bars, np.float64)
        sigma = eta * np.sqrt((1 - p) / (1 - a)) * np.sqrt(1 - a / p)
        clean, noisy = np.sqrt(p), np.sqrt(np.maximum(1 - p - sigma**2, 0))  # factors of x0 and of eps in x_prev
        # x_prev = scale x + slope output + sigma z, with coefficients computed in float64
        if prediction == "epsilon":
            self._scale = np.sqrt(p / a)
            self._slope = noisy - clean * np.sqrt((1 - a) / a)
        elif prediction == "x0":
            self._scale = noisy / np.sqrt(1 - a)
            self._slope = clean - noisy * np.sqrt(a / (1 - a))
        else:
            self._scale = clean * np.sqrt(a) + noisy * np.sqrt(1 - a)
            self._slope = noisy * np.sqrt(a) - clean * np.sqrt(1 - a)
        self._sigma = np.where(p < 1, np.sqrt(1 - a / p), 0.0) if large_variance else sigma

    def step(self, output: Tensor, index: int, x: Tensor, draw_noise: Callable[[int], Tensor]) -> Tensor:
        """Return x after step `index`; see `Scheduler.step`."""
        x = float(self._scale[index]) * x + float(self._slope[index]) * output
        if self._sigma[index] > 0:
            x = x + float(self._sigma[index]) * draw_noise(index)
        return x


def clean_factors(alpha_bars: np.ndarray, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors f and g of x0 = f x_t + g output at each noise level, (steps,) float64."""
    signal, noise = np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars)
    if prediction == "epsilon":
        return 1 / signal, -noise / signal
    return (signal, -noise) if prediction == "v" else (np.zeros_like(signal), np.ones_like(signal))


def trailing_timesteps(steps: int, num_timesteps: int) -> list[int]:
    """Return `steps` equally spaced timesteps, descending from the last one.

    Lin et al. 2024, arXiv:2305.08891, Table 2, "trailing": round(T - i T / steps) - 1.

    Raises:
        UserError: More steps than timesteps.
    """
    if steps > num_timesteps:
        raise UserError(f"scheduler.steps is {steps}, but the LDM was trained with {num_timesteps} timesteps")
    return [round(num_timesteps - i * num_timesteps / steps) - 1 for i in range(steps)]


def textbook_chain(schedule: NoiseSchedule, steps: int, eta: float, large_variance: bool = False) -> ReverseChain:
    """Return the chain over trailing timesteps, in which every step ends at the noise level of the next one.

    # Differs from diffusers: if the number of steps does not divide T, its DDIM steps to t - T // steps, which
    # is not the next timestep, and with 60 steps does not reach alpha_bar 1.
    """
    timesteps = trailing_timesteps(steps, schedule.num_timesteps)
    alpha_bars = schedule.alpha_bars.double().numpy()[timesteps]
    return ReverseChain(timesteps, alpha_bars, np.append(alpha_bars[1:], 1.0), eta, large_variance, schedule.prediction)
