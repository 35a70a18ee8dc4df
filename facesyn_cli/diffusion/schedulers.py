"""Schedulers (samplers) over trailing timesteps that end at alpha_bar 1.

A builder returns a function `NoiseSchedule -> Scheduler`; each batch needs its own scheduler, because multistep solvers
have state. Latents are not clipped or thresholded. `ddim` and `ddpm` are in `diffusion/reverse_chain.py`, `unipc` in
`diffusion/unipc.py`; these use diffusers, which is imported when they are built, as that takes seconds:

* DPM-Solver++ (2M): Lu et al. 2022, arXiv:2211.01095.
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
from facesyn_cli.diffusion.reverse_chain import ReverseChain, Scheduler, textbook_chain, trailing_timesteps
from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.diffusion.unipc import UniPc
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_KARRAS_RHO = 7.0


MakeScheduler = Callable[[NoiseSchedule], Scheduler]


class DdimConfig(PluginConfig):
    """Settings of `ddim`."""

    steps: int = affects_result(50, "network evaluations", ge=1)
    eta: float = affects_result(0.0, "fraction of the ancestral noise; 0 is deterministic", ge=0, le=1)


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
def build_ddim(cfg: DdimConfig) -> Callable[[NoiseSchedule], ReverseChain]:
    """Return a function that builds a DDIM chain for a schedule."""
    return lambda schedule: textbook_chain(schedule, cfg.steps, cfg.eta)


@register("scheduler", "ddpm", Card("ancestral sampling", "Ho et al. 2020, arXiv:2006.11239"))
def build_ddpm(cfg: DdpmConfig) -> Callable[[NoiseSchedule], ReverseChain]:
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

    def make(schedule: NoiseSchedule) -> UniPc:
        return UniPc(*_noise_levels(schedule, cfg), schedule.prediction)

    return make


@register("scheduler", "euler", Card("first-order solver in sigma", "Karras et al. 2022, arXiv:2206.00364"))
def build_euler(cfg: EulerConfig) -> MakeScheduler:
    """Return a function that builds an Euler solver for a schedule."""
    from diffusers import EulerDiscreteScheduler

    return lambda schedule: _Euler(EulerDiscreteScheduler, schedule, cfg)


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
