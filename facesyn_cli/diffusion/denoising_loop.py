"""The sampling loop from noise to latents, for any denoiser, scheduler and guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from facesyn_cli.diffusion.guidance import Guidance, Step
from facesyn_cli.diffusion.reverse_chain import Scheduler


def sample_latents(
    denoiser: nn.Module, scheduler: Scheduler, guidance: Guidance, contexts: Tensor | None, noise: Tensor,
    draw_noise: Callable[[int], Tensor] | None = None, on_step: Callable[[], None] | None = None,
    negatives: Tensor | None = None, num_timesteps: int = 1000,
) -> Tensor:
    """Return the latents of one batch, computed on the device of `noise`.

    Args:
        denoiser: `denoiser(x, t, context)` -> prediction, in eval mode, on the device of `noise`. If it has a method
            `encode_context(context, batch=B)`, contexts are encoded once per batch and the result is passed as context.
            If it has a method `join_contexts(first, second)`, two contexts are evaluated in one pass of 2 B, unless
            that returns None.
        scheduler: A fresh scheduler; multistep solvers are valid for one batch.
        guidance: Combination of outputs under several contexts.
        contexts: (B, E) identity contexts; None for an unconditional model.
        noise: (B, C, H, W) float32 N(0, 1).
        draw_noise: Step -> (B, C, H, W) noise to add after it; required by stochastic schedulers.
        on_step: Called before every step; can raise to end the loop, for example on a stop signal.
        negatives: (B, E) contexts to guide away from; None: the empty context.
        num_timesteps: T of the noise schedule; 1000 for a flow.

    Returns:
        (B, C, H, W) float32 latents.
    """
    steps = _steps(scheduler, num_timesteps)
    with torch.inference_mode():
        is_guided = any(guidance.evaluations(step) > 1 for step in steps)
        predict = guidance.begin(
            _encode(denoiser, contexts, len(noise)), _encode(denoiser, negatives, len(noise)) if is_guided else None
        )
        network = _BatchNetwork(denoiser)
        x = scheduler.start(noise)
        for index, step in enumerate(steps):
            if on_step is not None:
                on_step()
            x_in = scheduler.model_input(x, index)
            output = predict(network.at(x_in, _timesteps(scheduler, index, noise)), step)
            x = scheduler.step(output, index, x, draw_noise or _refuse_to_draw)
    return x


@torch.no_grad()
def denoised_to(
    denoiser: nn.Module, scheduler: Scheduler, contexts: Tensor, noise: Tensor, count: int,
) -> tuple[Tensor, Tensor]:
    """Return what the network sees after `count` steps of a sampler without guidance: x_t (B, C, H, W) and t (B,).

    Args:
        denoiser: `denoiser(x, t, context)` -> prediction, in eval mode, on the device of `noise`.
        scheduler: A fresh scheduler that adds no noise.
        contexts: (B, E).
        noise: (B, C, H, W) float32 N(0, 1).
        count: Steps to take, fewer than the scheduler has.
    """
    x = scheduler.start(noise)
    for index in range(count):
        output = denoiser(scheduler.model_input(x, index), _timesteps(scheduler, index, noise), contexts).float()
        x = scheduler.step(output, index, x, _refuse_to_draw)
    return scheduler.model_input(x, count), _timesteps(scheduler, count, noise)


def count_evaluations(scheduler: Scheduler, guidance: Guidance, num_timesteps: int = 1000) -> int:
    """Return the number of network evaluations per image."""
    return sum(guidance.evaluations(step) for step in _steps(scheduler, num_timesteps))


def _timesteps(scheduler: Scheduler, index: int, noise: Tensor) -> Tensor:
    """Return the timestep of a step as the denoiser takes it, (B,)."""
    timestep = scheduler.timesteps[index]
    is_whole = float(timestep).is_integer() and not getattr(scheduler, "is_continuous", False)
    return torch.full((len(noise),), timestep, device=noise.device, dtype=torch.long if is_whole else torch.float32)


def _steps(scheduler: Scheduler, num_timesteps: int) -> list[Step]:
    levels = [(float(t), len(list(same))) for t, same in itertools.groupby(scheduler.timesteps)]
    return [
        Step(index, len(levels), t / num_timesteps) for index, (t, count) in enumerate(levels) for _ in range(count)
    ]


def _encode(denoiser: nn.Module, contexts: Tensor | None, batch: int) -> Any:
    encode = getattr(denoiser, "encode_context", None)
    return contexts if encode is None else encode(contexts, batch=batch)


class _BatchNetwork:
    """The denoiser at the current step of a batch; see `guidance.Network`."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._join = getattr(denoiser, "join_contexts", lambda first, second: None)
        self._joined: tuple[Any, Any, Any] | None = None  # two contexts and their join, made once for all steps

    def at(self, x: Tensor, t: Tensor) -> _BatchNetwork:
        self._x, self._t = x, t
        return self

    def __call__(self, context: Any) -> Tensor:
        return self._denoiser(self._x, self._t, context).float()

    def pair(self, first: Any, second: Any) -> tuple[Tensor, Tensor]:
        if self._joined is None or self._joined[0] is not first or self._joined[1] is not second:
            self._joined = (first, second, self._join(first, second))
        both = self._joined[2]
        if both is None:
            return self(first), self(second)
        output = self._denoiser(self._x.repeat(2, 1, 1, 1), self._t.repeat(2), both).float()
        one, other = output.chunk(2)
        return one, other

    def with_early(self, context: Any) -> tuple[Tensor, Tensor]:
        output, early = self._denoiser(self._x, self._t, context, with_early=True).float()
        return output, early


def _refuse_to_draw(index: int) -> Tensor:
    raise ValueError("this scheduler adds noise between its steps: sample_latents needs draw_noise")
