"""UniPC of second order in data prediction, with B(h) = e^h - 1 ("bh2").

Zhao et al. 2023, arXiv:2302.04867, Alg. 1 and 2, with p = 2. Between noise levels s and t, with a = sqrt(ab),
b = sqrt(1 - ab), l = log(a / b), h = l_t - l_s, predictions x0_s at s and x0_r at the level before, and u = e^-h - 1:

    predicted = b_t / b_s x - a_t u (x0_s + 1/2 (x0_r - x0_s) / k),    k = (l_r - l_s) / h
    corrected = b_t / b_s x - a_t u (x0_s + c_1 (x0_r - x0_s) / k + c_2 (x0_t - x0_s))

with c_1 + c_2 = g_1 and k c_1 + c_2 = g_2, where g_1 = (u / -h - 1) / u and g_2 = 2 ((u / -h - 1) / -h - 1/2) / u.
The network is evaluated at the predicted x; its output corrects it, and the next step starts from the corrected x. The
first step has no r: the terms with k are omitted and c_2 = 1/2. The last one, to b_t = 0, returns x0_s.

# Differs from diffusers: the factors are computed on the host, in float64, before the first step. There they are device
# tensors, for which every step copies six numbers to the device and synchronizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from facesyn_cli.diffusion.reverse_chain import Scheduler, clean_factors

_Factors = tuple[float, float, float, float]  # of x, x0_s, x0_r and x0_t


class UniPc(Scheduler):
    """The solver; has state, so each batch needs its own.

    Args:
        timesteps: Timesteps of the network evaluations, descending.
        sigmas: (steps,) sqrt((1 - ab) / ab) of each of them; after the last one it is 0.
        prediction: Prediction target of the network: `epsilon`, `v` or `x0`.
    """

    def __init__(self, timesteps: Sequence[float], sigmas: np.ndarray, prediction: str) -> None:
        self.timesteps = tuple(timesteps)
        a, b = 1 / np.sqrt(1 + sigmas**2), sigmas / np.sqrt(1 + sigmas**2)
        self._of_x, self._of_output = clean_factors(a**2, prediction)
        signal, noise, log_ratio = [*a, 1.0], [*b, 0.0], [*np.log(a / b), math.inf]
        levels = range(len(sigmas))
        self._predict = [_factors(signal, noise, log_ratio, s, min(2, s + 1, len(sigmas) - s))[0] for s in levels]
        self._correct = [_factors(signal, noise, log_ratio, s, min(2, s + 1))[1] for s in levels[:-1]]
        self._before: tuple[Tensor, Tensor | None, Tensor | None] | None = None  # x, x0_s and x0_r of the last step

    def step(self, output: Tensor, index: int, x: Tensor, draw_noise: Callable[[int], Tensor]) -> Tensor:
        """Return x after step `index`; see `Scheduler.step`."""
        x0, earlier = float(self._of_x[index]) * x + float(self._of_output[index]) * output, None
        if self._before is not None:
            start, earlier, before = self._before
            x = _combined(self._correct[index - 1], start, earlier, before, x0)
        self._before = (x, x0, earlier)
        return _combined(self._predict[index], x, x0, earlier, None)


def _factors(
    signal: list[float], noise: list[float], log_ratio: list[float], s: int, order: int
) -> tuple[_Factors, _Factors]:
    """Return the factors of the prediction and of the correction from level s to the next one."""
    h = log_ratio[s + 1] - log_ratio[s]
    u = math.expm1(-h)
    of_x, strength = noise[s + 1] / noise[s], -signal[s + 1] * u
    if order == 1:
        return (of_x, strength, 0.0, 0.0), (of_x, strength / 2, 0.0, strength / 2)
    k = (log_ratio[s - 1] - log_ratio[s]) / h
    predicted = (of_x, strength * (1 - 0.5 / k), strength * 0.5 / k, 0.0)
    g_1 = (u / -h - 1) / u
    g_2 = 2 * ((u / -h - 1) / -h - 0.5) / u
    c_1 = (g_1 - g_2) / (1 - k)
    c_2 = g_1 - c_1
    return predicted, (of_x, strength * (1 - c_1 / k - c_2), strength * c_1 / k, strength * c_2)


def _combined(factors: _Factors, x: Tensor, *x0s: Tensor | None) -> Tensor:
    total = factors[0] * x
    for factor, x0 in zip(factors[1:], x0s, strict=True):
        if factor and x0 is not None:
            total = total + factor * x0
    return total
