from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from tolerance import rounding

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


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_v_and_x_give_back_latents_and_noise(name, zero_terminal_snr):
    schedule = build_schedule(name, 100, zero_terminal_snr=zero_terminal_snr, prediction="v")
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(100, 2, 3, 3, generator=generator, dtype=torch.float64)
    eps = torch.randn(100, 2, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.arange(100)
    x = schedule.add_noise(x0, eps, t)
    assert x.dtype == torch.float64
    v = schedule.target(x0, eps, t)
    a = schedule.alpha_bars.double().view(-1, 1, 1, 1)
    tolerance = rounding(scale=x.abs().max())  # the schedule's roots are float32
    torch.testing.assert_close(a.sqrt() * x - (1 - a).sqrt() * v, x0, atol=tolerance, rtol=0)
    torch.testing.assert_close((1 - a).sqrt() * x + a.sqrt() * v, eps, atol=tolerance, rtol=0)
    assert torch.equal(build_schedule(name, 100).target(x0, eps, t), eps)
    assert torch.equal(build_schedule(name, 100, prediction="x0").target(x0, eps, t), x0)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level(name):
    before, after = build_schedule(name), build_schedule(name, zero_terminal_snr=True, prediction="v")
    assert after.alpha_bars[-1] == 0 and after.betas[-1] == 1
    assert after.alpha_bars[0].item() == pytest.approx(before.alpha_bars[0].item(), rel=1e-6)
    assert (after.alpha_bars.diff() < 0).all()
    product = torch.cumprod(1 - after.betas.double(), 0)
    torch.testing.assert_close(product, after.alpha_bars.double(), atol=0, rtol=1e-3)


def test_zero_terminal_snr_is_the_one_of_diffusers():
    before = build_schedule("scaled_linear")
    ours = build_schedule("scaled_linear", zero_terminal_snr=True, prediction="v").betas
    theirs = rescale_zero_terminal_snr(before.betas)
    roots = before.alpha_bars.sqrt()
    left = ((roots - roots[-1]) / roots)[:-1]  # a share so small of the last roots is left that their roundings show
    assert ((ours - theirs)[:-1].abs() <= rounding(scale=10) / left).all() and ours[-1] == theirs[-1] == 1


def test_min_snr_weights_in_closed_form():
    t = torch.tensor([0, 500, 999])
    eps, v = build_schedule(), build_schedule(prediction="v")
    snr = eps.alpha_bars[t] / (1 - eps.alpha_bars[t])
    assert snr[0] > 5 > snr[1]
    expected = torch.stack([5 / snr[0], snr.new_ones(()), snr.new_ones(())])
    torch.testing.assert_close(eps.min_snr_weight(t, 5.0), expected)
    torch.testing.assert_close(v.min_snr_weight(t, 5.0), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(build_schedule(prediction="x0").min_snr_weight(t, 5.0), snr.clamp(max=5))
    # both say the same of an error in x_0: SNR err_x0^2 = err_eps^2 and (SNR + 1) err_x0^2 = err_v^2
    torch.testing.assert_close(eps.min_snr_weight(t, 5.0) * snr, v.min_snr_weight(t, 5.0) * (snr + 1))


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
        ({"prediction": "noise"}, "unknown prediction 'noise'; known: epsilon, v, x0"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr needs prediction v or x0"),
        ({"zero_terminal_snr": True, "prediction": "v", "num_timesteps": 1, "beta_end": 1e-4}, "at least 2 timesteps"),
        ({"beta_start": 0.1}, "expected 0 < first <= last < 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build_schedule(**settings)
