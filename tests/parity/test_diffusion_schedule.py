"""The published schedule, from its golden vectors and in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tolerance import rounding

from facesyn_cli.diffusion.schedule import build_schedule

GOLDEN = Path(__file__).parents[1] / "golden"
ROUNDING = rounding(scale=10)  # relative: log(alpha_bar) down to -10 is rounded to float32, then taken exp of


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "schedule.npz") as file:
        return {name: file[name] for name in file}


def test_linear_schedule_is_the_published_one(published):
    schedule = build_schedule()
    np.testing.assert_allclose(schedule.betas.numpy(), published["betas"], rtol=rounding())
    np.testing.assert_allclose(schedule.alpha_bars.numpy(), published["alpha_bars"], rtol=ROUNDING)


def test_add_noise_has_the_published_scales(published):
    schedule = build_schedule()
    t, one, zero = torch.arange(1000), torch.ones(1000, 1), torch.zeros(1000, 1)
    signal = schedule.add_noise(one, zero, t)[:, 0].numpy()
    spread = schedule.add_noise(zero, one, t)[:, 0].numpy()
    np.testing.assert_allclose(signal, published["sqrt_alpha_bars"], rtol=ROUNDING)
    expected = published["sqrt_one_minus_alpha_bars"]
    # 1 - alpha_bar is 1e-4 at first: a rounding of alpha_bar is off by 1e4 times as much of it
    assert (np.abs(spread - expected) <= ROUNDING * expected + rounding() * published["alpha_bars"] / expected).all()


@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_linear_schedule_against_float64(num_timesteps):
    scale = 1000 / num_timesteps
    alpha_bars = np.cumprod(1 - np.linspace(scale * 1e-4, scale * 0.02, num_timesteps))
    ours = build_schedule("linear", num_timesteps).alpha_bars.numpy()
    np.testing.assert_allclose(ours, alpha_bars, rtol=ROUNDING + rounding(num_timesteps))  # each 1 - beta is float32


def test_scaled_linear_schedule_against_float64():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    ours = build_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(ours.alpha_bars.numpy(), np.cumprod(1 - betas), rtol=ROUNDING + rounding(1000))


def test_cosine_schedule_against_its_closed_form():
    ours = build_schedule("cosine")
    u = np.arange(1, 1001) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    closed_form = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    unclipped = ours.betas.numpy() < 0.0999
    assert 970 < unclipped.sum() < 1000
    tolerance = ROUNDING + rounding(1000)
    np.testing.assert_allclose(ours.alpha_bars.numpy()[unclipped], closed_form[unclipped], rtol=tolerance)
    assert ours.betas.max() == pytest.approx(0.1)
