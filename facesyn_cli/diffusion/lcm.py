"""Sampling of latent consistency models: each step predicts the latent, then adds noise of the next level.

Luo et al. 2023, arXiv:2310.04378, Alg. 3; multistep consistency sampling of Song et al. 2023, arXiv:2303.01469. With
a = ab_t, p = ab_prev and x0 the prediction at x_t:

    f      = c_skip x_t + c_out x0,    c_skip = s^2 / ((10 t)^2 + s^2),  c_out = 10 t / sqrt((10 t)^2 + s^2),  s = 1/2
    x_prev = sqrt(p) f + sqrt(1 - p) z,    z ~ N(0, 1); the last step returns f

The scalings are those of the published models; they matter at t = 0 only. Meant for 1 to 8 steps of a distilled
network. Other networks predict the mean of the possible latents, so their images are smoother and less diverse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.reverse_chain import ReverseChain, clean_factors, trailing_timesteps
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_TIME_SCALE = 10.0
_SIGMA_DATA = 0.5


class LcmConfig(PluginConfig):
    """Settings of `lcm`."""

    steps: int = affects_result(4, "network evaluations", ge=1)


@register(
    "scheduler", "lcm",
    Card("multistep consistency sampling, for few steps of a distilled LDM", "Luo et al. 2023, arXiv:2310.04378"),
)
def build_lcm(cfg: LcmConfig) -> Callable[[NoiseSchedule], ReverseChain]:
    """Return a function that builds the chain for a schedule."""
    return lambda schedule: _LcmChain(schedule, cfg.steps)


class _LcmChain(ReverseChain):
    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        timesteps = trailing_timesteps(steps, schedule.num_timesteps)
        a = schedule.alpha_bars.double().numpy()[timesteps]
        p = np.append(a[1:], 1.0)
        super().__init__(timesteps, a, p, prediction=schedule.prediction)
        scaled = _TIME_SCALE * np.array(timesteps, np.float64)
        c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        c_out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
        of_x, of_output = clean_factors(a, schedule.prediction)
        self._scale = np.sqrt(p) * (c_out * of_x + c_skip)
        self._slope = np.sqrt(p) * c_out * of_output
        self._sigma = np.sqrt(1 - p)
