"""Ancestral sampling of guided-diffusion: fewer steps, a learned variance, and clipped images.

Nichol and Dhariwal 2021, arXiv:2102.09672: K of the T timesteps are used, evenly spaced and rounded to integers
(section 4), with their alpha_bar; all other quantities are recomputed for the shortened chain:

    beta_i  = 1 - ab_i / ab_{i-1}                        ab_{-1} = 1
    beta~_i = beta_i (1 - ab_{i-1}) / (1 - ab_i)
    log variance = v log beta_i + (1 - v) log beta~_i    Eq. 15, v = (output + 1) / 2
    x0   = clip((x - sqrt(1 - ab_i) eps) / sqrt(ab_i), -1, 1)
    mean = sqrt(ab_{i-1}) beta_i / (1 - ab_i) x0 + sqrt(1 - beta_i) (1 - ab_{i-1}) / (1 - ab_i) x

The last step returns the mean without noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facesyn_cli.diffusion.schedule import NoiseSchedule
from facesyn_cli.errors import UserError


class AncestralChain:
    """The shortened chain, from the noisiest timestep to 0.

    Args:
        schedule: Noise schedule with T timesteps.
        num_steps: K, at least 1 and at most T.

    Attributes:
        timesteps: K timesteps of the network, descending.
    """

    def __init__(self, schedule: NoiseSchedule, num_steps: int) -> None:
        count = schedule.num_timesteps
        if not 1 <= num_steps <= count:
            raise UserError(f"steps {num_steps}: 1 to {count} are possible with this noise schedule")
        kept = torch.linspace(0, count - 1, num_steps, dtype=torch.float64).round().long()
        # float64, because the betas are quotients of small alpha_bars
        bars = torch.cumprod(1 - schedule.betas.double(), dim=0)[kept]
        self.timesteps = kept.flip(0).tolist()
        self._bar = bars.flip(0)
        self._bar_before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]]).flip(0)

    def step(self, index: int, x: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
        """Return the image after step number `index`, from 0.

        Args:
            x: (B, C, H, W) noisy images at `timesteps[index]`.
            output: (B, 2 C, H, W), predicted noise, and v interpolating the log variance, about [-1, 1].
            noise: (B, C, H, W) standard normal; unused in the last step.
        """
        eps, where = output.chunk(2, dim=1)
        bar, before = float(self._bar[index]), float(self._bar_before[index])
        beta = 1 - bar / before
        x0 = ((x - (1 - bar) ** 0.5 * eps) / bar**0.5).clamp(-1, 1)
        mean = before**0.5 * beta / (1 - bar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - bar) * x
        if index == len(self.timesteps) - 1:
            return mean
        largest, smallest = torch.tensor([beta, beta * (1 - before) / (1 - bar)], dtype=torch.float64).log().tolist()
        log_variance = smallest + (where + 1) / 2 * (largest - smallest)
        return mean + torch.exp(0.5 * log_variance) * noise
