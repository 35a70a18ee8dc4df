"""A network that predicts v or x_0, also from pure noise, samples what one that predicts eps does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facesyn_cli.diffusion.loss import TrainingNoise, diffusion_loss
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.scheduler_choice import fitting_schedulers
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

EPS = build_schedule()
OTHERS = ["v", "x0"]
MEAN, STD = 1.5, 0.5
NAMES = sorted(set(fitting_schedulers("v")) - {"ddim-admis"})


def make(name, schedule, **settings):
    return registry.build("scheduler", registry.configure("scheduler", {"name": name, **settings}))(schedule)


def gaussian_denoiser(schedule):
    """E[eps | x_t], E[x_0 | x_t] or E[v | x_t] for x_0 ~ N(MEAN, STD^2)."""

    def denoise(x, t):
        a, x = schedule.alpha_bars[int(t)].double(), x.double()
        variance = a * STD**2 + 1 - a
        eps = (1 - a).sqrt() * (x - a.sqrt() * MEAN) / variance
        x0 = MEAN + a.sqrt() * STD**2 * (x - a.sqrt() * MEAN) / variance
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        return {"epsilon": eps, "v": v, "x0": x0}[schedule.prediction].float()

    return denoise


def run(name, schedule, noise, **settings):
    scheduler, x = make(name, schedule, **settings), None
    x = scheduler.start(noise)
    for index, t in enumerate(scheduler.timesteps):
        output = gaussian_denoiser(schedule)(scheduler.model_input(x, index), t)
        x = scheduler.step(output, index, x, lambda i: torch.from_numpy(
            np.random.RandomState(i).standard_normal(noise.shape).astype(np.float32)
        ))
    return x


def ending_in_noise(prediction):
    return build_schedule(zero_terminal_snr=True, prediction=prediction)


@pytest.fixture
def noise():
    return torch.from_numpy(np.random.RandomState(0).standard_normal((64, 2, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("prediction", OTHERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 7, 25])
def test_the_path_is_that_of_eps(name, steps, prediction, noise):
    other = build_schedule(prediction=prediction)
    torch.testing.assert_close(
        run(name, other, noise, steps=steps), run(name, EPS, noise, steps=steps), atol=5e-3, rtol=5e-3
    )


@pytest.mark.parametrize("prediction", OTHERS)
@pytest.mark.parametrize(("name", "settings"), [
    ("ddim", {"steps": 1000}), ("ddim", {"steps": 200, "eta": 1.0}), ("ddpm", {"steps": 1000}),
    ("ddpm", {"steps": 1000, "variance": "large"}), ("dpm-solver++", {"steps": 100}), ("unipc", {"steps": 100}),
    ("euler", {"steps": 500}),
])
def test_from_pure_noise_the_moments_of_the_data(name, settings, prediction, noise):
    result = run(name, ending_in_noise(prediction), noise, **settings)
    assert abs(result.mean() - MEAN) < 0.03
    assert abs(result.std() - STD) < 0.03


@pytest.mark.parametrize("prediction", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_one_step_from_pure_noise_gives_the_mean(name, prediction, noise):
    """At alpha_bar 0 the best guess of x_0 is its mean, whatever the noise."""
    result = run(name, ending_in_noise(prediction), noise, steps=1)
    torch.testing.assert_close(result, torch.full_like(result, MEAN), atol=5e-3, rtol=0)


@pytest.mark.parametrize("prediction", OTHERS)
def test_the_published_chain_needs_eps(prediction):
    with pytest.raises(UserError, match=f"this LDM predicts {prediction}: use ddim"):
        make("ddim-admis", build_schedule(prediction=prediction), steps=50)


def test_loss_compares_with_v_and_weighs_by_snr(noise):
    schedule = ending_in_noise("v")
    latents, eps, t = noise[:3].flip(0), noise[3:6], torch.tensor([0, 300, 999])
    draws = TrainingNoise(t, eps, None, None)
    v = schedule.target(latents, eps, t)

    def off_by(error):
        return lambda x, t, context: v + error

    assert diffusion_loss(off_by(0.0), schedule, latents, None, draws).abs().max() < 1e-12
    plain = diffusion_loss(off_by(0.5), schedule, latents, None, draws)
    torch.testing.assert_close(plain, torch.full((3,), 0.25))
    weighed = diffusion_loss(off_by(0.5), schedule, latents, None, draws, min_snr_gamma=5.0)
    a = schedule.alpha_bars[t]
    torch.testing.assert_close(weighed, 0.25 * torch.minimum(a / (1 - a), torch.tensor(5.0)) * (1 - a))
