"""DDIM as in the ADMIS and IDiff-Face code, with identical numbers.

Song et al. 2021, arXiv:2010.02502, Eq. 12 at eta = 0, with two peculiarities of the published loop:

* the timesteps are (n - 1) k, ..., k, 0 with k = T / n, so the chain starts at t = 980 (T 1000, n 50) although x_T is
  pure noise;
* the alpha_bar after a step is off by one: ab[t - k - 1] instead of ab[t - k], and 1 for t <= k. The step at t = k
  already removes all noise, and the step at t = 0 denoises again, as if noise of ab[0] were left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.reverse_chain import ReverseChain
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class DdimAdmisConfig(PluginConfig):
    """Settings of `ddim-admis`."""

    steps: int = affects_result(50, "network evaluations; must divide the LDM's timesteps (1000)", ge=1)


@register(
    "scheduler", "ddim-admis",
    Card("DDIM with the off-by-one chain of the published code", "Song et al. 2021, arXiv:2010.02502"),
)
def build_ddim_admis(cfg: DdimAdmisConfig) -> Callable[[NoiseSchedule], ReverseChain]:
    """Return a function that builds the chain for a schedule.

    Raises:
        UserError: From that function: the steps do not divide T, or the LDM does not predict eps.
    """

    def make(schedule: NoiseSchedule) -> ReverseChain:
        if schedule.prediction != "epsilon":
            raise UserError("scheduler ddim-admis is defined for eps prediction only; this LDM predicts "
                            f"{schedule.prediction}: use ddim")
        total = schedule.num_timesteps
        if total % cfg.steps:
            raise UserError(
                f"scheduler ddim-admis needs a number of steps that divides {total}, got {cfg.steps}; the nearest is "
                f"{_nearest_divisor(total, cfg.steps)}"
            )
        skip = total // cfg.steps
        timesteps = np.arange(cfg.steps)[::-1] * skip
        alpha_bars = schedule.alpha_bars.double().numpy()
        shifted = np.append(1.0, alpha_bars)  # shifted[t] = ab[t - 1]
        previous = np.where(timesteps > skip, shifted[np.maximum(timesteps - skip, 0)], 1.0)
        return ReverseChain(timesteps.tolist(), alpha_bars[timesteps], previous)

    return make


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))
