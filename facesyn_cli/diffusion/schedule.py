"""Noise schedules: the forward process of a diffusion model.

Ho et al. 2020, arXiv:2006.11239, Eq. 4, and Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17:

    x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps,    ab_t = prod_{s <= t} (1 - beta_s)
    linear:         beta from beta_start to beta_end in T equal steps
    scaled_linear:  sqrt(beta) from sqrt(beta_start) to sqrt(beta_end) in T equal steps (Rombach et al. 2022)
    cosine:         ab(u) = cos^2((u + s) / (1 + s) * pi / 2), u = t / T, s = 0.008; beta clipped to [0, 0.1]

None of them ends in pure noise, the start of sampling. Lin et al. 2024, arXiv:2305.08891, Alg. 1, shift and scale
sqrt(ab) to end at 0 (zero terminal SNR). There eps contains no information about x_0, so the network must predict
v = sqrt(ab) eps - sqrt(1 - ab) x_0 (Salimans & Ho 2022, arXiv:2202.00512, App. D), or x_0 itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.errors import UserError

BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v", "x0")

_COSINE_OFFSET = 0.008    # s of Nichol & Dhariwal
_COSINE_MAX_BETA = 0.1    # as published; Nichol & Dhariwal clip at 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise level of every timestep and the prediction target, shared by training and sampling.

    Args:
        betas: (T,) float32, variance added at each timestep.
        alpha_bars: (T,) float32, fraction of the signal variance at each timestep; decreasing.
        prediction: Prediction target of the network, one of `PREDICTIONS`.

    Shapes: T timesteps, B batch; latents, noise and x are (B, ...), t is (B,) of integers in [0, T).
    """

    betas: Tensor
    alpha_bars: Tensor
    prediction: str = "epsilon"

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    def draw_timestep(self, random: np.random.RandomState) -> int:
        """Return one timestep of training; all are equally likely."""
        return int(random.randint(self.num_timesteps))

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps."""
        signal, spread = self._scales(latents, t)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the prediction target at x_t: eps, x_0, or v = sqrt(ab_t) eps - sqrt(1 - ab_t) x_0."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return latents
        signal, spread = self._scales(latents, t)
        return signal * noise - spread * latents

    def clean_latents(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 that the network's output at x_t means."""
        if self.prediction == "x0":
            return output
        signal, spread = self._scales(x, t)
        return (x - spread * output) / signal if self.prediction == "epsilon" else signal * x - spread * output

    def signal_share(self, t: Tensor) -> Tensor:
        """Return sqrt(ab_t) / (sqrt(ab_t) + sqrt(1 - ab_t)), (B,) float32: 1 at the latents, 0 at pure noise."""
        alpha_bars = self.alpha_bars.to(t.device)[t]
        return alpha_bars.sqrt() / (alpha_bars.sqrt() + (1 - alpha_bars).sqrt())

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return the weight of each image's squared error, (B,) float32.

        Hang et al. 2023, arXiv:2303.09556, Eq. 8, with SNR = ab / (1 - ab): min(SNR, gamma) for x_0, divided by SNR
        for eps, by SNR + 1 for v. The weight is 0 at a terminal SNR of 0.
        """
        alpha_bars = self.alpha_bars.to(t.device)[t]
        snr = alpha_bars / (1 - alpha_bars)
        return snr.clamp(max=gamma) / {"epsilon": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction]

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # Roots are taken in float32 as stored, then cast: float64 inputs must not see a second table.
        alpha_bars = self.alpha_bars.to(like.device)[t.to(like.device)].view(-1, *[1] * (like.ndim - 1))
        return alpha_bars.sqrt().to(like.dtype), (1 - alpha_bars).sqrt().to(like.dtype)


def build_schedule(
    beta_schedule: str | Sequence[float] = "linear", num_timesteps: int = 1000, beta_start: float = 1e-4,
    beta_end: float = 0.02, zero_terminal_snr: bool = False, prediction: str = "epsilon",
) -> NoiseSchedule:
    """Return the schedule of a trained or a new LDM.

    Args:
        beta_schedule: One of `BETA_SCHEDULES`, or the betas themselves, (T,), for which the two ends play no part.
        num_timesteps: T. As published, both ends of the linear schedules are scaled by 1000 / T, so that
            the last alpha_bar hardly depends on T.
        beta_start: beta_0 at T = 1000; `cosine` has none.
        beta_end: beta_{T-1} at T = 1000; `cosine` has none.
        zero_terminal_snr: Shift and scale the schedule so that the last timestep is pure noise.
        prediction: What the network predicts, one of `PREDICTIONS`.

    Raises:
        UserError: A name is unknown, the numbers make no schedule, or eps is to be predicted from pure noise.
    """
    if num_timesteps < 1:
        raise UserError(f"num_timesteps must be at least 1, got {num_timesteps}")
    if not isinstance(beta_schedule, str):
        betas = torch.tensor(beta_schedule, dtype=torch.float32)
        if len(betas) != num_timesteps or not ((betas > 0) & (betas < 1)).all():
            raise UserError(f"{len(betas)} betas for {num_timesteps} timesteps; one in (0, 1) was expected for each")
    elif beta_schedule == "cosine":
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
    if prediction not in PREDICTIONS:
        raise UserError(f"unknown prediction {prediction!r}; known: {', '.join(PREDICTIONS)}")
    # exp of a sum of logs instead of a product: the float32 rounding of the published code
    alpha_bars = torch.exp(torch.cumsum(torch.log(1 - betas), dim=0))
    if not zero_terminal_snr:
        return NoiseSchedule(betas, alpha_bars, prediction)
    if prediction == "epsilon":
        raise UserError("zero_terminal_snr needs prediction v or x0: at pure noise, eps does not determine the image")
    return NoiseSchedule(*_ending_in_noise(alpha_bars), prediction)


def describe_betas(betas: Sequence[float]) -> str:
    """Return the name of the schedule that betas follow within float32 rounding, or their number and range."""
    given = torch.tensor(betas, dtype=torch.float32)
    for name in BETA_SCHEDULES:
        scale = len(betas) / 1000
        try:
            known = build_schedule(name, len(betas), betas[0] * scale, betas[-1] * scale).betas
        except UserError:
            continue  # not possible with these ends
        if torch.allclose(given, known, rtol=1e-4, atol=1e-7):
            return name
    return f"{len(betas)} betas from {min(betas):.4g} to {max(betas):.4g}"


def ldm_schedule(settings: LdmSettings) -> NoiseSchedule | FlowSchedule:
    """Return the noise schedule of a trained LDM, or its flow.

    Raises:
        UserError: The settings are not a valid schedule.
    """
    if settings.flow is not None:
        return FlowSchedule(settings.flow)
    return build_schedule(settings.beta_schedule, settings.num_timesteps, settings.beta_start, settings.beta_end,
                          settings.zero_terminal_snr, settings.prediction)


def _ending_in_noise(alpha_bars: Tensor) -> tuple[Tensor, Tensor]:
    """Return (betas, alpha_bars) of Lin et al.'s Algorithm 1: the first alpha_bar stays, the last becomes 0."""
    roots = alpha_bars.double().sqrt()
    if len(roots) < 2:
        raise UserError("zero_terminal_snr needs at least 2 timesteps")
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    alpha_bars = roots.square()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    return (1 - alpha_bars / before).float(), alpha_bars.float()


def _cosine_betas(num_timesteps: int) -> Tensor:
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alpha_bars = torch.cos((u + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(0, _COSINE_MAX_BETA).float()
