"""Rectified flow: straight paths from latents to noise, and the density of the times at which they are trained.

Liu et al. 2022, arXiv:2209.03003, with t = 0 at the latent and t = 1 at the noise n ~ N(0, 1):

    x_t = (1 - t) x_0 + t n,    v = n - x_0,    x_0 = x_t - t v

The network predicts v under the mean squared error. Esser et al. 2024, arXiv:2403.03206, section 3.1, draw t from the
logit-normal density, and Eq. 23 shifts it towards noise for larger images:

    t = sigmoid(mean + std z),  z ~ N(0, 1):   p(t) = exp(-(logit(t) - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t))
    t' = shift t / (1 + (shift - 1) t):        logit(t') = logit(t) + log(shift)

Networks take 1000 t as float32, the scale of the timesteps of a noise schedule, which denoisers embed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from facesyn_cli.artifacts.ldm_settings import FlowTimes

Times = TypeVar("Times", float, np.ndarray)


@dataclass(frozen=True)
class FlowSchedule:
    """The counterpart of `NoiseSchedule` for LDMs that predict the velocity of a rectified flow.

    Args:
        times: Density of the times in training; its shift is also the default of the flow schedulers.

    Attributes:
        num_timesteps: Timestep of pure noise, t = 1.

    Shapes: B batch; latents, noise, velocity and x are (B, ...), timesteps are (B,) in [0, 1000], 1000 t.
    """

    times: FlowTimes = FlowTimes()

    prediction: ClassVar[str] = "flow"
    num_timesteps: ClassVar[int] = 1000

    def draw_timestep(self, random: np.random.RandomState) -> float:
        """Return one timestep of training, computed in float64 from one normal random number."""
        position = self.times.mean + self.times.std * random.standard_normal()
        t = 0.5 * (1 + math.tanh(0.5 * position))  # sigmoid, which does not overflow
        return self.num_timesteps * shifted(t, self.times.shift)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = (1 - t) x_0 + t n."""
        t = self._times(latents, timesteps)
        return (1 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity n - x_0, which does not depend on the timestep."""
        return noise - latents

    def clean_latents(self, x: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_0 = x_t - t v, the latents that a predicted velocity leads to."""
        return x - self._times(x, timesteps) * velocity

    def signal_share(self, timesteps: Tensor) -> Tensor:
        """Return 1 - t, (B,) float32: 1 at the latents, 0 at pure noise."""
        return 1 - timesteps.float() / self.num_timesteps

    def _times(self, like: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.to(like.device, like.dtype) / self.num_timesteps
        return t.view(-1, *[1] * (like.ndim - 1))


def shifted(t: Times, shift: float) -> Times:
    """Return times in [0, 1] moved towards noise (shift above 1) or towards the latents (below); 0 and 1 stay."""
    return shift * t / (1 + (shift - 1) * t)
