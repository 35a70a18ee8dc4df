"""How noise grows with time: the forward process of a diffusion model.

Ho et al. 2020, arXiv:2006.11239, Eq. 4, and Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17:

    x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps,    ab_t = prod_{s <= t} (1 - beta_s)
    linear:         beta from beta_start to beta_end in T equal steps
    scaled_linear:  sqrt(beta) from sqrt(beta_start) to sqrt(beta_end) in T equal steps (Rombach et al. 2022)
    cosine:         ab(u) = cos^2((u + s) / (1 + s) * pi / 2), u = t / T, s = 0.008; beta clipped to [0, 0.1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facesyn_cli.errors import UserError

BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")

_COSINE_OFFSET = 0.008    # s of Nichol & Dhariwal
_COSINE_MAX_BETA = 0.1    # as published; Nichol & Dhariwal clip at 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise level of every timestep, shared by training and sampling.

    Args:
        betas: (T,) float32, variance added at each timestep.
        alpha_bars: (T,) float32, share of the signal's variance left at each timestep; falls with t.

    Shapes: T timesteps, B batch; latents, noise and x are (B, ...), t is (B,) of integers in [0, T).
    """

    betas: Tensor
    alpha_bars: Tensor

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps."""
        signal, spread = self._scales(latents, t)
        return signal * latents + spread * noise

    def predict_x0(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the clean latent that x_t and its noise imply."""
        signal, spread = self._scales(x, t)
        return (x - spread * eps) / signal

    def predict_eps(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return the noise that x_t and its clean latent imply."""
        signal, spread = self._scales(x, t)
        return (x - signal * x0) / spread

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # Roots are taken in float32 as stored, then cast: float64 inputs must not see a second table.
        alpha_bars = self.alpha_bars.to(like.device)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))
        return alpha_bars.sqrt().to(like.dtype), (1 - alpha_bars).sqrt().to(like.dtype)


def build_schedule(
    beta_schedule: str = "linear",
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> NoiseSchedule:
    """Return the schedule of a trained or a new LDM.

    Args:
        beta_schedule: One of `BETA_SCHEDULES`.
        num_timesteps: T. As published, both ends of the linear schedules are scaled by 1000 / T, so that
            the last alpha_bar hardly depends on T.
        beta_start: beta_0 at T = 1000; `cosine` has none.
        beta_end: beta_{T-1} at T = 1000; `cosine` has none.

    Raises:
        UserError: The name is unknown or the numbers make no schedule.
    """
    if num_timesteps < 1:
        raise UserError(f"num_timesteps must be at least 1, got {num_timesteps}")
    if beta_schedule == "cosine":
        betas = _cosine_betas(num_timesteps)
    elif beta_schedule in BETA_SCHEDULES:
        scale = 1000 / num_timesteps
        low, high = scale * beta_start, scale * beta_end
        if not 0 < low <= high < 1:
            raise UserError(
                f"beta_start {beta_start} and beta_end {beta_end} at {num_timesteps} timesteps mean betas from"
                f" {low:.4g} to {high:.4g}; expected 0 < first <= last < 1"
            )
        if beta_schedule == "linear":
            betas = torch.linspace(low, high, num_timesteps, dtype=torch.float32)
        else:
            betas = torch.linspace(low**0.5, high**0.5, num_timesteps, dtype=torch.float32) ** 2
    else:
        raise UserError(f"unknown beta_schedule {beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}")
    # exp of a sum of logs rather than a product: the published float32 rounding.
    return NoiseSchedule(betas, torch.exp(torch.cumsum(torch.log(1 - betas), dim=0)))


def _cosine_betas(num_timesteps: int) -> Tensor:
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alpha_bars = torch.cos((u + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(0, _COSINE_MAX_BETA).float()
