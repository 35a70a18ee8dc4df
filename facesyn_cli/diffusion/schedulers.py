"""Schedulers (samplers); a builder returns a function `NoiseSchedule -> Scheduler`.

Each batch needs its own scheduler, because multistep solvers have state. Latents are not clipped or thresholded. All
but `ddim-admis` run over trailing timesteps and end at alpha_bar 1; `dpm-solver++` and `euler` use diffusers, which is
imported when they are built, as that takes seconds:

* DDIM, DDPM: `diffusion/reverse_chain.py`.
* LCM, latent consistency models: Luo et al. 2023, arXiv:2310.04378, Alg. 3; multistep consistency sampling of Song et
  al. 2023, arXiv:2303.01469. Each step predicts the latent, then adds noise of the next level. With a = ab_t,
  p = ab_prev and x0 the prediction at x_t:

    f      = c_skip x_t + c_out x0,    c_skip = s^2 / ((10 t)^2 + s^2),  c_out = 10 t / sqrt((10 t)^2 + s^2),  s = 1/2
    x_prev = sqrt(p) f + sqrt(1 - p) z,    z ~ N(0, 1); the last step returns f

  The scalings are those of the published models; they matter at t = 0 only. Meant for 1 to 8 steps of a distilled
  network. Other networks predict the mean of the possible latents, so their images are smoother and less diverse.
* DPM-Solver++ (2M): Lu et al. 2022, arXiv:2211.01095.
* UniPC: `diffusion/unipc.py`.
* Euler: Karras et al. 2022, arXiv:2206.00364, Alg. 1 without churn; equal to `ddim` with trailing timesteps, but not
  with spacing `karras` (Eq. 5, rho 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.reverse_chain import (
    ReverseChain,
    Scheduler,
    clean_factors,
    textbook_chain,
    trailing_timesteps,
)
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.diffusion.unipc import UniPc
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_KARRAS_RHO = 7.0
_LCM_TIME_SCALE, _LCM_SIGMA = 10.0, 0.5

MakeScheduler = Callable[[NoiseSchedule], Scheduler]


class DdimConfig(PluginConfig):
    """Settings of `ddim`."""

    steps: int = affects_result(50, "network evaluations", ge=1)
    eta: float = affects_result(0.0, "fraction of the ancestral noise; 0 is deterministic", ge=0, le=1)


class DdimAdmisConfig(PluginConfig):
    """Settings of `ddim-admis`."""

    steps: int = affects_result(50, "network evaluations; must divide the LDM's timesteps (1000)", ge=1)


class LcmConfig(PluginConfig):
    """Settings of `lcm`."""

    steps: int = affects_result(4, "network evaluations", ge=1)


class DdpmConfig(PluginConfig):
    """Settings of `ddpm`."""

    steps: int = affects_result(1000, "network evaluations", ge=1)
    variance: Literal["small", "large"] = affects_result(
        "small", "small: of the posterior; large: beta, as in IDiff-Face"
    )


class SolverConfig(PluginConfig):
    """Settings of the solvers that step through noise levels sigma = sqrt((1 - ab) / ab)."""

    steps: int = affects_result(20, "network evaluations", ge=1)
    spacing: Literal["trailing", "karras"] = affects_result(
        "trailing", "equal steps in time, or those of Karras et al. in sigma"
    )


class EulerConfig(SolverConfig):
    """Settings of `euler`."""

    steps: int = affects_result(50, "network evaluations", ge=1)


@register("scheduler", "ddim", Card("DDIM, deterministic at eta 0", "Song et al. 2021, arXiv:2010.02502"))
def build_ddim(cfg: DdimConfig) -> MakeScheduler:
    """Return a function that builds a DDIM chain for a schedule."""
    return lambda schedule: textbook_chain(schedule, cfg.steps, cfg.eta)


@register(
    "scheduler", "ddim-admis",
    Card("DDIM with the off-by-one chain of the published code", "Song et al. 2021, arXiv:2010.02502"),
)
def build_ddim_admis(cfg: DdimAdmisConfig) -> MakeScheduler:
    """Return a function that builds the chain of the ADMIS and IDiff-Face code, with identical numbers.

    Song et al. 2021, Eq. 12 at eta = 0, with two peculiarities of the published loop:

    * the timesteps are (n - 1) k, ..., k, 0 with k = T / n, so the chain starts at t = 980 (T 1000, n 50) although x_T
      is pure noise;
    * the alpha_bar after a step is off by one: ab[t - k - 1] instead of ab[t - k], and 1 for t <= k. The step at t = k
      already removes all noise, and the step at t = 0 denoises again, as if noise of ab[0] were left.

    Raises:
        UserError: From that function: the steps do not divide T, or the LDM does not predict eps.
    """

    def make(schedule: NoiseSchedule) -> ReverseChain:
        if schedule.prediction != "epsilon":
            raise UserError("scheduler ddim-admis is defined for eps prediction only; this LDM predicts "
                            f"{schedule.prediction}: use ddim")
        total = schedule.num_timesteps
        if total % cfg.steps:
            nearest = min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - cfg.steps))
            raise UserError(f"scheduler ddim-admis needs a number of steps that divides {total}, got {cfg.steps}; the "
                            f"nearest is {nearest}")
        skip = total // cfg.steps
        timesteps = np.arange(cfg.steps)[::-1] * skip
        alpha_bars = schedule.alpha_bars.double().numpy()
        shifted = np.append(1.0, alpha_bars)  # shifted[t] = ab[t - 1]
        previous = np.where(timesteps > skip, shifted[np.maximum(timesteps - skip, 0)], 1.0)
        return ReverseChain(timesteps.tolist(), alpha_bars[timesteps], previous)

    return make


@register(
    "scheduler", "lcm",
    Card("multistep consistency sampling, for few steps of a distilled LDM", "Luo et al. 2023, arXiv:2310.04378"),
)
def build_lcm(cfg: LcmConfig) -> MakeScheduler:
    """Return a function that builds the chain for a schedule."""
    return lambda schedule: _LcmChain(schedule, cfg.steps)


@register("scheduler", "ddpm", Card("ancestral sampling", "Ho et al. 2020, arXiv:2006.11239"))
def build_ddpm(cfg: DdpmConfig) -> MakeScheduler:
    """Return a function that builds an ancestral chain for a schedule."""
    return lambda schedule: textbook_chain(schedule, cfg.steps, 1.0, cfg.variance == "large")


@register("scheduler", "dpm-solver++", Card("second-order multistep solver (2M)", "Lu et al. 2022, arXiv:2211.01095"))
def build_dpm_solver(cfg: SolverConfig) -> MakeScheduler:
    """Return a function that builds a DPM-Solver++ (2M) for a schedule."""
    from diffusers import DPMSolverMultistepScheduler

    return lambda schedule: _Solver(DPMSolverMultistepScheduler, schedule, cfg)


@register("scheduler", "unipc", Card("second-order predictor-corrector", "Zhao et al. 2023, arXiv:2302.04867"))
def build_unipc(cfg: SolverConfig) -> MakeScheduler:
    """Return a function that builds a UniPC solver for a schedule."""
    return lambda schedule: UniPc(*_noise_levels(schedule, cfg), schedule.prediction)


@register("scheduler", "euler", Card("first-order solver in sigma", "Karras et al. 2022, arXiv:2206.00364"))
def build_euler(cfg: EulerConfig) -> MakeScheduler:
    """Return a function that builds an Euler solver for a schedule."""
    from diffusers import EulerDiscreteScheduler

    return lambda schedule: _Euler(EulerDiscreteScheduler, schedule, cfg)


class _LcmChain(ReverseChain):
    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        timesteps = trailing_timesteps(steps, schedule.num_timesteps)
        a = schedule.alpha_bars.double().numpy()[timesteps]
        p = np.append(a[1:], 1.0)
        super().__init__(timesteps, a, p, prediction=schedule.prediction)
        scaled = _LCM_TIME_SCALE * np.array(timesteps, np.float64)
        c_skip = _LCM_SIGMA**2 / (scaled**2 + _LCM_SIGMA**2)
        c_out = scaled / np.sqrt(scaled**2 + _LCM_SIGMA**2)
        of_x, of_output = clean_factors(a, schedule.prediction)
        self._scale = np.sqrt(p) * (c_out * of_x + c_skip)
        self._slope = np.sqrt(p) * c_out * of_output
        self._sigma = np.sqrt(1 - p)


class _Solver(Scheduler):
    """A diffusers solver with noise levels that are set here.

    # Differs from diffusers: its trailing timesteps come from a float range that for 62 of the step
    # counts up to 1000 (61, 103, 121, ...) has an extra element at t = -1.
    """

    def __init__(self, solver: type, schedule: NoiseSchedule, cfg: SolverConfig) -> None:
        alpha_bars = _finite_alpha_bars(schedule)
        self._solver = solver(
            num_train_timesteps=schedule.num_timesteps,
            trained_betas=(1 - alpha_bars / np.append(1.0, alpha_bars[:-1])).astype(np.float32),
            prediction_type={"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[schedule.prediction],
            timestep_spacing="trailing",
            final_sigmas_type="zero",
        )
        timesteps, sigmas = _noise_levels(schedule, cfg)
        self._solver.set_timesteps(cfg.steps)
        self._solver.timesteps = torch.tensor(timesteps)
        self._solver.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        self._solver.num_inference_steps = cfg.steps
        self._solver.set_begin_index(0)
        self.timesteps = tuple(timesteps)

    def step(self, output: Tensor, index: int, x: Tensor, draw_noise: Callable[[int], Tensor]) -> Tensor:
        return self._solver.step(output, self._solver.timesteps[index], x, return_dict=False)[0]


class _Euler(_Solver):
    """The Euler solver, which works on x / sqrt(ab) = x0 + sigma eps."""

    def start(self, noise: Tensor) -> Tensor:
        return noise * float((self._solver.sigmas[0] ** 2 + 1) ** 0.5)

    def model_input(self, x: Tensor, index: int) -> Tensor:
        return self._solver.scale_model_input(x, self._solver.timesteps[index])


def _noise_levels(schedule: NoiseSchedule, cfg: SolverConfig) -> tuple[list[float], np.ndarray]:
    """Return the timesteps of the evaluations and their sigmas, both descending."""
    alpha_bars = _finite_alpha_bars(schedule)
    all_sigmas = np.sqrt((1 - alpha_bars) / alpha_bars)
    timesteps = [float(t) for t in trailing_timesteps(cfg.steps, schedule.num_timesteps)]
    if cfg.spacing == "trailing":
        return timesteps, all_sigmas[[int(t) for t in timesteps]]
    high, low = all_sigmas[-1] ** (1 / _KARRAS_RHO), all_sigmas[0] ** (1 / _KARRAS_RHO)
    sigmas = np.linspace(high, low, cfg.steps) ** _KARRAS_RHO
    positions = np.interp(np.log(sigmas), np.log(all_sigmas), np.arange(len(all_sigmas)))
    return positions.tolist(), sigmas


def _finite_alpha_bars(schedule: NoiseSchedule) -> np.ndarray:
    """Return the alpha_bars, float64, limited to sigma < 4096 for schedules that end in pure noise."""
    return np.maximum(schedule.alpha_bars.double().numpy(), 2.0**-24)
