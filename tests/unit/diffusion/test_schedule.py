from __future__ import annotations

import pytest
import torch

from facesyn_cli.diffusion.schedule import BETA_SCHEDULES, build_schedule
from facesyn_cli.errors import UserError


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_signal_only_falls(name):
    schedule = build_schedule(name, 200)
    assert schedule.num_timesteps == 200
    assert schedule.betas.dtype == schedule.alpha_bars.dtype == torch.float32
    assert (schedule.alpha_bars.diff() < 0).all()
    assert 0 < schedule.alpha_bars[-1] < 5e-3
    assert 0.99 < schedule.alpha_bars[0] < 1


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_predictions_invert_add_noise(name):
    schedule = build_schedule(name, 100)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(100, 2, 3, 3, generator=generator, dtype=torch.float64)
    eps = torch.randn(100, 2, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.arange(100)
    x = schedule.add_noise(x0, eps, t)
    assert x.dtype == torch.float64
    torch.testing.assert_close(schedule.predict_x0(x, eps, t), x0)
    torch.testing.assert_close(schedule.predict_eps(x, x0, t), eps)


def test_each_image_has_its_own_timestep():
    schedule = build_schedule()
    ones = torch.ones(2, 1, 1, 1)
    both = schedule.add_noise(ones, 0 * ones, torch.tensor([0, 999]))
    assert both[0].item() == pytest.approx(0.9999**0.5)
    assert both[1].item() == pytest.approx(4.03583e-5**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "linaer"}, "unknown beta_schedule 'linaer'"),
        ({"num_timesteps": 0}, "num_timesteps must be at least 1"),
        ({"num_timesteps": 10}, "betas from 0.01 to 2"),
        ({"beta_start": 0.1}, "expected 0 < first <= last < 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build_schedule(**settings)
