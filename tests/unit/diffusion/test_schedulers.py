"""Schedulers against closed forms: data drawn from a Gaussian, for which the best denoiser is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, UniPCMultistepScheduler
from tolerance import rounding
from torch.utils._python_dispatch import TorchDispatchMode

from facesyn_cli.diffusion.reverse_chain import trailing_timesteps
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.scheduler_choice import fitting_schedulers
from facesyn_cli.diffusion.schedulers import SolverConfig, _Solver
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

SCHEDULE = build_schedule()
ALPHA_BARS = SCHEDULE.alpha_bars.double()
LOGARITHM = 10  # of alpha_bar at the end: rounded to float32 and taken exp of, alpha_bar is off by 10 roundings
MEAN, STD = 1.5, 0.5
NAMES = fitting_schedulers("epsilon")
DETERMINISTIC = [name for name in NAMES if name not in ("ddpm", "lcm")]


def make(name, schedule=SCHEDULE, **settings):
    return registry.build("scheduler", registry.configure("scheduler", {"name": name, **settings}))(schedule)


def run(scheduler, denoise, noise, draw_noise=None):
    x = scheduler.start(noise)
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoise(scheduler.model_input(x, index), t), index, x, draw_noise)
    return x


def alpha_bar(t):
    """At fractional t, log sigma is linear between the timesteps, as the karras spacing assumes."""
    low = int(t)
    log_sigma = 0.5 * torch.log((1 - ALPHA_BARS) / ALPHA_BARS)
    part = t - low
    at = log_sigma[low] * (1 - part) + (log_sigma[low + 1] * part if part else 0)
    return 1 / (1 + torch.exp(2 * at))


def gaussian_denoiser(x, t):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2): linear in x_t."""
    a = alpha_bar(t)
    variance = a * STD**2 + 1 - a
    return ((1 - a).sqrt() * (x.double() - a.sqrt() * MEAN) / variance).float()


def perfect_denoiser(x0):
    def denoise(x, t):
        a = alpha_bar(t)
        return ((x.double() - a.sqrt() * x0.double()) / (1 - a).sqrt()).float()

    return denoise


@pytest.fixture
def noise():
    return torch.from_numpy(np.random.RandomState(0).standard_normal((64, 2, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_perfect_denoiser_gives_the_clean_latent(name, steps, noise):
    x0 = 3 * noise.flip(0)[:2] + 1
    torch.testing.assert_close(run(make(name, steps=steps), perfect_denoiser(x0), noise[:2]), x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "settings"), [("ddpm", {"variance": "small"}), ("ddpm", {"variance": "large"}),
                                                ("ddim", {"eta": 0.7}), ("lcm", {})])
def test_noise_between_the_steps_does_not_hide_the_clean_latent(name, settings, noise):
    x0 = 3 * noise.flip(0)[:2] + 1
    scheduler = make(name, steps=10, **settings)
    result = run(scheduler, perfect_denoiser(x0), noise[:2], draw_noise=lambda index: noise[2 + index : 4 + index])
    torch.testing.assert_close(result, x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "tolerance"),
    [
        ("ddim", {"steps": 1000}, 1e-2),
        ("euler", {"steps": 1000}, 1e-2),
        ("dpm-solver++", {"steps": 50}, 1e-2),
        ("dpm-solver++", {"steps": 50, "spacing": "karras"}, 2e-2),
        ("unipc", {"steps": 50}, 1e-2),
        ("unipc", {"steps": 50, "spacing": "karras"}, 1e-2),
        ("euler", {"steps": 500, "spacing": "karras"}, 2e-2),
    ],
)
def test_deterministic_schedulers_solve_the_gaussian_flow(name, settings, tolerance, noise):
    """The probability flow maps each quantile of the noise to that of the data."""
    a = ALPHA_BARS[-1]
    noised_std = (a * STD**2 + 1 - a).sqrt()
    expected = MEAN + STD * (noise.double() - a.sqrt() * MEAN) / noised_std
    result = run(make(name, **settings), gaussian_denoiser, noise).double()
    assert (result - expected).abs().max() < tolerance


@pytest.mark.parametrize(("name", "settings"), [("ddpm", {"variance": "small"}), ("ddpm", {"variance": "large"}),
                                                ("ddim", {"eta": 1.0, "steps": 1000})])
def test_ancestral_sampling_has_the_moments_of_the_data(name, settings, noise):
    generator = torch.Generator().manual_seed(0)
    result = run(
        make(name, **settings), gaussian_denoiser, noise,
        draw_noise=lambda index: torch.randn(noise.shape, generator=generator),
    )
    n = result.numel()
    assert abs(result.mean() - MEAN) < 4 * STD / n**0.5
    assert abs(result.std() - STD) < 4 * STD / (2 * n) ** 0.5 + 2e-3  # 1000 steps leave 0.1 % of bias


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence(order, noise):
    """Twice the steps: half the error of a first-order method, about a quarter of a second-order one."""
    name = {1: "euler", 2: "dpm-solver++"}[order]
    a = ALPHA_BARS[-1]
    expected = MEAN + STD * (noise.double() - a.sqrt() * MEAN) / (a * STD**2 + 1 - a).sqrt()

    def error(steps):
        settings = {"steps": steps, "spacing": "karras"}
        return (run(make(name, **settings), gaussian_denoiser, noise).double() - expected).abs().mean()

    ratio = error(40) / error(80)
    assert 0.8 * 2**order < ratio < 1.4 * 2**order


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [7, 50, 60])
def test_ddim_follows_its_formula_in_float64(eta, steps, noise):
    draws = [noise[i : i + 4].double() for i in range(steps)]
    x = noise[:4].double()
    timesteps = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    for i, t in enumerate(timesteps):
        a = ALPHA_BARS[t]
        p = ALPHA_BARS[timesteps[i + 1]] if i + 1 < steps else torch.tensor(1.0, dtype=torch.float64)
        eps = torch.sin(x) + t / 1000
        sigma = eta * ((1 - p) / (1 - a)).sqrt() * (1 - a / p).sqrt()
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = p.sqrt() * x0 + (1 - p - sigma**2).clamp(min=0).sqrt() * eps + sigma * draws[i]
    scheduler = make("ddim", steps=steps, eta=eta)
    assert list(scheduler.timesteps) == timesteps
    ours = run(
        scheduler, lambda x, t: (torch.sin(x.double()) + t / 1000).float(), noise[:4],
        draw_noise=lambda index: draws[index].float(),
    )
    assert (ours - x).abs().max() < rounding(steps) * LOGARITHM * x.std()


def _diffusers(cls, steps, **settings):
    scheduler = cls(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
        timestep_spacing="trailing", **settings,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_ddim_equals_diffusers_where_steps_divide_the_timesteps(steps, noise):
    reference, x = _diffusers(DDIMScheduler, steps), noise[:4]
    for t in reference.timesteps:
        x = reference.step(gaussian_denoiser(x, int(t)), t, x).prev_sample
    ours = run(make("ddim", steps=steps), gaussian_denoiser, noise[:4])
    # x_0 is of size 1, what the first step takes it from is of size 1 / sqrt(alpha_bar)
    torch.testing.assert_close(ours, x, atol=rounding(scale=ALPHA_BARS[-1] ** -0.5), rtol=0)


def test_ddim_ends_clean_where_diffusers_does_not(noise):
    """60 does not divide 1000: the last step of diffusers ends at alpha_bar[0] instead of 1."""
    x0 = noise[4:8]
    reference, x = _diffusers(DDIMScheduler, 60), noise[:4]
    for t in reference.timesteps:
        x = reference.step(perfect_denoiser(x0)(x, int(t)), t, x).prev_sample
    assert (x - x0).abs().max() > 1e-2
    ours = run(make("ddim", steps=60), perfect_denoiser(x0), noise[:4])
    assert (ours - x0).abs().max() < 1e-3


@pytest.mark.parametrize(("variance", "theirs"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_one_ancestral_step_equals_diffusers(variance, theirs, noise, monkeypatch):
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: noise[4:8])
    reference = _diffusers(DDPMScheduler, 50, variance_type=theirs)
    ours = make("ddpm", steps=50, variance=variance)
    eps = noise[8:12]
    for index in (0, 20, 48):
        expected = reference.step(eps, reference.timesteps[index], noise[:4]).prev_sample
        actual = ours.step(eps, index, noise[:4], lambda index: noise[4:8])
        # at the first step x_0 is a difference of numbers of size 1 / sqrt(alpha_bar)
        torch.testing.assert_close(actual, expected, atol=rounding(scale=ALPHA_BARS[-1] ** -0.5), rtol=0)


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 61])
@pytest.mark.parametrize("schedule", [SCHEDULE, build_schedule("cosine", zero_terminal_snr=True, prediction="v")])
def test_unipc_equals_diffusers(schedule, steps, spacing, noise):
    """A network that is no one's denoiser, so that prediction and correction differ."""
    cfg = SolverConfig(name="unipc", steps=steps, spacing=spacing)
    reference = _Solver(UniPCMultistepScheduler, schedule, cfg)

    def denoise(x, t):
        return torch.sin(3 * x) / 2 + 0.3 * x + t / 1000

    expected = run(reference, denoise, noise[:4])
    ours = make("unipc", schedule, steps=steps, spacing=spacing)
    assert ours.timesteps == reference.timesteps
    assert (run(ours, denoise, noise[:4]) - expected).abs().max() < rounding(steps) * LOGARITHM * expected.std()


def test_no_scheduler_makes_a_tensor_on_the_device_of_the_latents(noise):
    """It would be copied there, and everything would wait for it: on the meta device it cannot be read back."""
    for name in NAMES:
        scheduler = make(name, steps=5)
        x = scheduler.start(noise[:2].to("meta"))
        for index in range(5):
            with _Made() as made:
                output = scheduler.model_input(x, index)
                x = scheduler.step(output, index, x, lambda index: noise[:2].to("meta"))
            assert not made.copies, (name, index, made.copies)


class _Made(TorchDispatchMode):
    """Notes what copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "_to_copy" in str(func) and result.device.type == "meta" and args[0].device.type != "meta":
            if result.shape != (2, 2, 8, 8):  # the noise of the test itself
                self.copies.append(str(func))
        return result


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 4, 1000])
def test_lcm_equals_diffusers(steps, prediction, noise, monkeypatch):
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *a, **k: noise[4:8])
    theirs = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction]
    reference = LCMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=theirs, original_inference_steps=1000
    )
    timesteps = trailing_timesteps(steps, 1000)
    reference.set_timesteps(timesteps=timesteps)
    ours = make("lcm", build_schedule(prediction=prediction), steps=steps)
    for index in {0, steps // 2, steps - 1}:
        reference._step_index = index
        expected = reference.step(noise[8:12], timesteps[index], noise[:4]).prev_sample
        actual = ours.step(noise[8:12], index, noise[:4], lambda index: noise[4:8])
        torch.testing.assert_close(actual, expected, atol=rounding() * LOGARITHM * float(expected.abs().max()), rtol=0)


def test_lcm_starts_again_from_less_noise(noise):
    """With a network that knows the latent, x after a step is it with the noise of the next level, all of it new."""
    x0, fresh = noise[:2] + 1, noise[2:4]
    scheduler = make("lcm", steps=4)
    x = scheduler.step(perfect_denoiser(x0)(noise[4:6], 999), 0, noise[4:6], lambda index: fresh)
    p = ALPHA_BARS[scheduler.timesteps[1]]
    torch.testing.assert_close(x, (p.sqrt() * x0 + (1 - p).sqrt() * fresh).float(), atol=2e-3, rtol=1e-3)


def test_euler_with_trailing_timesteps_walks_the_path_of_ddim(noise):
    ddim = run(make("ddim", steps=30), gaussian_denoiser, noise[:4])
    torch.testing.assert_close(run(make("euler", steps=30), gaussian_denoiser, noise[:4]), ddim, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddim-admis"])
@pytest.mark.parametrize("steps", [1, 3, 50, 61, 103, 1000])
def test_every_step_count_gives_that_many_evaluations_from_the_last_timestep_down(name, steps):
    timesteps = make(name, steps=steps).timesteps
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert all(a > b >= 0 for a, b in zip(timesteps, timesteps[1:], strict=False))


@pytest.mark.parametrize("name", ["dpm-solver++", "unipc", "euler"])
def test_karras_spacing_follows_equation_5(name):
    sigma = ((1 - ALPHA_BARS) / ALPHA_BARS).sqrt().numpy()
    i = np.arange(10)
    rho = (sigma[-1] ** (1 / 7) + i / 9 * (sigma[0] ** (1 / 7) - sigma[-1] ** (1 / 7))) ** 7
    timesteps = make(name, steps=10, spacing="karras").timesteps
    np.testing.assert_allclose([float((1 - a) / a) ** 0.5 for a in map(alpha_bar, timesteps)], rho, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_latents_outside_the_pixel_range_are_not_clipped(name, noise):
    x0 = torch.full_like(noise[:1], 9.0)
    result = run(make(name, steps=20), perfect_denoiser(x0), noise[:1], draw_noise=lambda index: noise[1:2])
    torch.testing.assert_close(result, x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name, noise):
    def draw(rows):
        return lambda index: noise[rows]

    together = run(make(name, steps=4), gaussian_denoiser, noise[:3], draw(slice(10, 13)))
    alone = run(make(name, steps=4), gaussian_denoiser, noise[1:2], draw(slice(11, 12)))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 3, 60, 999, 1000])
def test_trailing_timesteps(steps):
    timesteps = trailing_timesteps(steps, 1000)
    assert len(set(timesteps)) == steps
    assert timesteps[0] == 999
    assert min(timesteps) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_more_steps_than_timesteps_are_refused(name):
    with pytest.raises(UserError, match="1001"):
        make(name, steps=1001)


@pytest.mark.parametrize(("steps", "nearest"), [(3, 2), (30, 25), (60, 50), (999, 1000)])
def test_ddim_admis_refuses_steps_that_do_not_divide_the_timesteps(steps, nearest):
    with pytest.raises(UserError, match=f"divides 1000, got {steps}; the nearest is {nearest}$"):
        make("ddim-admis", steps=steps)


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_a_scheduler_would_ignore_are_refused(name):
    known = {"ddim": "eta", "ddpm": "variance", "ddim-admis": None, "lcm": None}.get(name, "spacing")
    for setting, value in {"eta": 0.5, "variance": "large", "spacing": "karras", "clip_sample": True}.items():
        if setting != known:
            with pytest.raises(ValueError, match=setting):
                registry.configure("scheduler", {"name": name, setting: value})
