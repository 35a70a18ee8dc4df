"""Schedulers of LDMs that predict the velocity of a rectified flow (`diffusion/flow.py`), on diffusers' solvers.

They solve dx/dt = v(x, t) from noise at t = 1 to the latents at t = 0. With s steps they use the times
t_i = shifted(1 - i / s), i = 0 ... s:

    Euler:  x_{i+1} = x_i + (t_{i+1} - t_i) v(x_i, t_i)
    Heun:   the same with the mean of v(x_i, t_i) and v(y, t_{i+1}), where y is the result of the Euler step. Its last
            step, to t = 0, is an Euler step, so s steps evaluate the network 2 s - 1 times.

Euler is of first order, Heun of second. (Esser et al. 2024, arXiv:2403.03206; Karras et al. 2022, arXiv:2206.00364,
Alg. 1 without noise.)

They start at temperature * n, n ~ N(0, 1). Below 1, the noise is less than the network saw in training: images are
nearer to what is usual for their context, with fewer torn features, softer, and more alike. (Reduced-temperature
sampling: Kingma & Dhariwal 2018, arXiv:1807.03039, section 6, for normalizing flows.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.diffusion.flow import FlowSchedule, shifted
from facesyn_cli.diffusion.reverse_chain import Scheduler
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_SHIFT = "moves the steps towards noise (above 1) or towards the latents; None: as in the LDM's training"
_TEMPERATURE = "scale of the starting noise; below 1: fewer odd images, softer and more alike"


class FlowEulerConfig(PluginConfig):
    """Settings of `flow-euler`."""

    predictions: ClassVar[tuple[str, ...]] = ("flow",)

    steps: int = affects_result(20, "network evaluations", ge=1)
    shift: float | None = affects_result(None, _SHIFT, gt=0)
    temperature: float = affects_result(1.0, _TEMPERATURE, gt=0, le=1)


class FlowHeunConfig(PluginConfig):
    """Settings of `flow-heun`."""

    predictions: ClassVar[tuple[str, ...]] = ("flow",)

    steps: int = affects_result(10, "steps; s steps are 2 s - 1 network evaluations", ge=1)
    shift: float | None = affects_result(None, _SHIFT, gt=0)
    temperature: float = affects_result(1.0, _TEMPERATURE, gt=0, le=1)


@register(
    "scheduler", "flow-euler",
    Card("Euler steps for LDMs that predict flow", "Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, "
         "arXiv:2403.03206"),
)
def build_flow_euler(cfg: FlowEulerConfig) -> Callable[[FlowSchedule], Scheduler]:
    """Return a function that builds an Euler solver for a flow."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return lambda schedule: _FlowSolver(FlowMatchEulerDiscreteScheduler(), schedule, cfg, evaluations=1)


@register(
    "scheduler", "flow-heun",
    Card("Heun steps, second order, for LDMs that predict flow", "Karras et al. 2022, arXiv:2206.00364"),
)
def build_flow_heun(cfg: FlowHeunConfig) -> Callable[[FlowSchedule], Scheduler]:
    """Return a function that builds a Heun solver for a flow."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    return lambda schedule: _FlowSolver(FlowMatchHeunDiscreteScheduler(), schedule, cfg, evaluations=2)


class _FlowSolver(Scheduler):
    """A diffusers solver with times that are set here.

    # Differs from diffusers: its times end at one thousandth before t = 0, from where the last step leads to 0; here
    # all steps are equal before the shift, and Heun takes a shift of its own.
    """

    is_continuous = True

    def __init__(
        self, solver: object, schedule: FlowSchedule, cfg: FlowEulerConfig | FlowHeunConfig, evaluations: int
    ) -> None:
        shift = schedule.times.shift if cfg.shift is None else cfg.shift
        times = shifted(1 - np.arange(cfg.steps) / cfg.steps, shift)
        # Every time but the first, pure noise, ends a step and starts one.
        times = np.concatenate([times[:1], times[1:].repeat(evaluations)])
        solver.set_timesteps(cfg.steps)
        solver.sigmas = torch.tensor([*times, 0.0], dtype=torch.float32)
        solver.timesteps = solver.sigmas[:-1] * schedule.num_timesteps
        solver.set_begin_index(0)
        self._solver, self._temperature = solver, cfg.temperature
        self.timesteps = tuple(solver.timesteps.tolist())

    def start(self, noise: Tensor) -> Tensor:
        return self._temperature * noise

    def step(self, output: Tensor, index: int, x: Tensor, draw_noise: Callable[[int], Tensor]) -> Tensor:
        return self._solver.step(output, self._solver.timesteps[index], x, return_dict=False)[0]
