"""Rectified flow on Gaussian data, whose velocity is known, and against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tolerance import rounding
from torch import nn

from facesyn_cli.artifacts.ldm_settings import FlowTimes, LdmSettings
from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.flow import FlowSchedule, shifted
from facesyn_cli.diffusion.loss import diffusion_loss, training_noise
from facesyn_cli.diffusion.schedule import build_schedule, ldm_schedule
from facesyn_cli.diffusion.scheduler_choice import build_scheduler, fitting_schedulers
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

MEAN, STD = 1.5, 0.5
PLAIN = FlowSchedule()
SHAPE = (2, 4, 4)


def scheduler(name: str, schedule: FlowSchedule = PLAIN, **settings):
    return build_scheduler(registry.configure("scheduler", {"name": name, **settings}), "flow")(schedule)


def guidance(name: str, **settings):
    return registry.build("guidance", registry.configure("guidance", {"name": name, **settings}))


def velocity(x, t, mean=MEAN, std=STD):
    """E[n - x_0 | x_t] for x_0 ~ N(mean, std^2)."""
    variance = (1 - t) ** 2 * std**2 + t**2
    return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)


class Exact(nn.Module):
    """The exact velocity of N(MEAN + context, STD^2), computed in float64; notes its timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x, t, context=None):
        self.seen.append(t)
        mean = MEAN + (0 if context is None else context.double().view(-1, 1, 1, 1))
        return velocity(x.double(), t.double().view(-1, 1, 1, 1) / 1000, mean).float()


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))


def solved(noise: torch.Tensor) -> torch.Tensor:
    """The exact solution at t = 0: the flow of a Gaussian scales the noise."""
    return MEAN + STD * noise


def times(steps: int, shift: float = 1.0) -> np.ndarray:
    return np.array([shift * u / (1 + (shift - 1) * u) for u in 1 - np.arange(steps + 1) / steps])


def test_euler_with_many_steps_draws_the_data():
    noise = normal(4096, 1, 2, 2)
    drawn = sample_latents(Exact(), scheduler("flow-euler", steps=400), guidance("none"), None, noise).double()
    torch.testing.assert_close(drawn, solved(noise.double()), rtol=0, atol=0.02)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize(("name", "steps", "atol"), [("flow-euler", 400, 0.02), ("flow-heun", 100, 1e-3)])
@pytest.mark.parametrize("temperature", [0.5, 0.85])
def test_a_temperature_narrows_what_is_drawn(name: str, steps: int, atol: float, temperature: float):
    """The flow of a Gaussian scales the noise, so the data are drawn with temperature times their deviation."""
    noise = normal(256, 1, 2, 2)
    chosen = scheduler(name, steps=steps, temperature=temperature)
    drawn = sample_latents(Exact(), chosen, guidance("none"), None, noise).double()
    torch.testing.assert_close(drawn, solved(temperature * noise.double()), rtol=0, atol=atol)


@pytest.mark.parametrize("temperature", [0, 1.1])
def test_a_temperature_is_between_0_and_1(temperature: float):
    with pytest.raises(ValidationError, match="temperature"):
        scheduler("flow-euler", temperature=temperature)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "falls"), [("flow-euler", 2), ("flow-heun", 4)])
def test_the_error_falls_by_the_order_of_the_solver(name: str, falls: int, shift: float):
    noise = normal(16, 1, 2, 2)

    def error(steps: int) -> float:
        made = sample_latents(Exact(), scheduler(name, steps=steps, shift=shift), guidance("none"), None, noise)
        return (made.double() - solved(noise.double())).abs().max().item()

    assert error(40) / error(80) == pytest.approx(falls, rel=0.15)


@pytest.mark.parametrize("name", ["flow-euler", "flow-heun"])
def test_the_network_takes_1000_t_as_float(name: str):
    denoiser, steps = Exact(), 5
    sample_latents(denoiser, scheduler(name, steps=steps), guidance("none"), None, normal(2, *SHAPE))
    seen = [t[0].item() for t in denoiser.seen]
    expected = [1000.0, 800.0, 600.0, 400.0, 200.0]
    if name == "flow-heun":
        expected = [1000.0, *np.repeat(expected[1:], 2)]
    assert seen == pytest.approx(expected, rel=1e-6)
    assert {t.dtype for t in denoiser.seen} == {torch.float32}


def test_the_shift_of_the_ldm_is_the_default_of_the_schedulers():
    schedule = FlowSchedule(FlowTimes(shift=3.0))
    of_ldm, stated = scheduler("flow-euler", schedule, steps=4), scheduler("flow-euler", schedule, steps=4, shift=1.0)
    assert of_ldm.timesteps == pytest.approx((1000 * times(4, 3.0)[:-1]).tolist(), rel=1e-6)
    assert stated.timesteps == pytest.approx([1000, 750, 500, 250])


def test_evaluations_are_counted():
    assert count_evaluations(scheduler("flow-euler", steps=7), guidance("none")) == 7
    assert count_evaluations(scheduler("flow-heun", steps=7), guidance("none")) == 13
    assert count_evaluations(scheduler("flow-heun", steps=7), guidance("cfg", scale=2.0)) == 26
    assert count_evaluations(scheduler("flow-heun", steps=1), guidance("none")) == 1


def _euler(x: np.ndarray, v, steps: int, shift: float) -> np.ndarray:
    t = times(steps, shift)
    for i in range(steps):
        x = x + (t[i + 1] - t[i]) * v(x, t[i], i)
    return x


def _heun(x: np.ndarray, v, steps: int, shift: float) -> np.ndarray:
    t = times(steps, shift)
    for i in range(steps):
        first = v(x, t[i], i)
        y = x + (t[i + 1] - t[i]) * first
        x = y if i == steps - 1 else x + (t[i + 1] - t[i]) / 2 * (first + v(y, t[i + 1], i + 1))
    return x


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize(("name", "settings", "scale"), [
    ("none", {}, lambda t, i: 1.0),
    ("cfg", {"scale": 2.5}, lambda t, i: 2.5),
    ("cfg", {"scale": 2.5, "start": 0.25, "end": 0.75}, lambda t, i: 2.5 if 0.25 <= i / 8 < 0.75 else 1.0),
    ("negfacediff", {"scale": 1.5, "negative": "far"}, lambda t, i: 1.5),
    ("adaptdiff", {"scale": 2.0}, lambda t, i: 1 + (1 - t)),
])
@pytest.mark.parametrize(("solver", "reference"), [("flow-euler", _euler), ("flow-heun", _heun)])
def test_guided_sampling_is_a_plain_loop_in_float64(solver, reference, name, settings, scale, is_joint):
    noise, shift = normal(3, *SHAPE), 1.5
    positive, negative = torch.tensor([[0.4], [-0.3], [0.0]]), torch.tensor([[-1.0], [0.5], [0.9]])
    denoiser = Exact()
    if is_joint:
        denoiser.join_contexts = lambda first, second: torch.cat([first, second])
    made = sample_latents(
        denoiser, scheduler(solver, FlowSchedule(FlowTimes(shift=shift)), steps=8), guidance(name, **settings),
        positive, noise, negatives=negative,
    )

    def v(x, t, i):
        pos, neg = (velocity(x, t, MEAN + c.double().numpy().reshape(3, 1, 1, 1)) for c in (positive, negative))
        return neg + scale(t, i) * (pos - neg)

    expected = reference(noise.double().numpy(), v, 8, shift)
    # of 16 evaluations, amplified by the guidance
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=40 * rounding(1) * np.abs(expected).max())


def test_uiface_does_not_compare_two_evaluations_of_one_time():
    from test_guidance_uiface import Contexts

    from facesyn_cli.diffusion.guidance import Step

    torch.manual_seed(0)
    seen: list[str] = []
    first = torch.rand(1, 1, 2, 2).softmax(dim=-1)
    predict = guidance("uiface", settled=0.006, switch=0.0).begin(Contexts("identity"), Contexts("empty"))

    def network(context):
        if context.maps is not None:
            context.maps.cross = [first]
        seen.append(context.name)
        return torch.zeros(1)

    for index in (0, 1, 1):
        predict(network, Step(index, 9, 0.9))
    assert [name[0] for name in seen[1::2]] == ["e", "i", "i"]  # settled between the steps 0 and 1
    predict = guidance("uiface", settled=0.006, switch=0.0).begin(Contexts("identity"), Contexts("empty"))
    seen.clear()
    for index in (0, 0):
        predict(network, Step(index, 9, 0.9))
    assert [name[0] for name in seen[1::2]] == ["e", "e"]


@pytest.mark.parametrize("given", [
    FlowTimes(), FlowTimes(mean=-0.6, std=0.5), FlowTimes(mean=0.3, std=1.4, shift=3.0),
])
def test_times_have_the_logit_normal_density(given: FlowTimes):
    schedule, count = FlowSchedule(given), 20_000
    random = np.random.RandomState(1)
    t = np.array([schedule.draw_timestep(random) for _ in range(count)]) / 1000
    logits = np.log(t / (1 - t))
    center = given.mean + math.log(given.shift)
    assert logits.mean() == pytest.approx(center, abs=4 * given.std / count**0.5)
    assert logits.var() == pytest.approx(given.std**2, rel=4 * (2 / count) ** 0.5)
    grid = (np.arange(200_000) + 0.5) / 200_000
    density = np.exp(-((np.log(grid / (1 - grid)) - center) ** 2) / (2 * given.std**2)) / (
        given.std * math.sqrt(2 * math.pi) * grid * (1 - grid)
    )
    assert density.mean() == pytest.approx(1, abs=1e-4)
    for power in (1, 2):
        moment, square = (density * grid**power).mean(), (density * grid ** (2 * power)).mean()
        assert (t**power).mean() == pytest.approx(moment, abs=4 * ((square - moment**2) / count) ** 0.5)


def test_extreme_times_stay_in_range():
    class Fixed:
        def standard_normal(self):
            return self.value

    schedule, random = FlowSchedule(FlowTimes(std=20, mean=20, shift=3)), Fixed()
    for random.value, expected in ((1e3, 1000.0), (-1e3, 0.0)):
        assert schedule.draw_timestep(random) == expected


def test_the_shift_keeps_both_ends():
    assert [shifted(t, 3.0) for t in (0.0, 0.5, 1.0)] == [0.0, 0.75, 1.0]


def test_the_clean_latents_follow_from_the_velocity():
    latents, noise, t = normal(3, *SHAPE).double(), 2 * normal(3, *SHAPE).double() - 1, torch.tensor([0.0, 310.5, 1e3])
    x = PLAIN.add_noise(latents, noise, t)
    torch.testing.assert_close(PLAIN.clean_latents(x, PLAIN.target(latents, noise, t), t), latents)
    assert torch.equal(x[0], latents[0]) and torch.equal(x[2], noise[2])


@pytest.mark.parametrize("contexts", [None, normal(4, 8)])
def test_the_loss_is_that_of_a_plain_loop(contexts):
    class Network(nn.Module):
        def forward(self, x, t, context, drop_context=None, component_mask=None):
            assert t.dtype == torch.float32
            kept = 0 if context is None else (context * ~drop_context[:, None]).sum(1).view(-1, 1, 1, 1)
            return 0.7 * x + t.view(-1, 1, 1, 1) / 500 + kept

    schedule = FlowSchedule(FlowTimes(mean=0.2, shift=1.5))
    draws = training_noise(3, 4, range(4), SHAPE, schedule, 0.5, 0.0, 1)
    latents = normal(4, *SHAPE)
    losses = diffusion_loss(Network(), schedule, latents, contexts, draws)
    for b in range(4):
        t = draws.t[b].double() / 1000
        x0, n = latents[b].double(), draws.noise[b].double()
        kept = 0 if contexts is None or draws.drop_context[b] else contexts[b].double().sum()
        output = 0.7 * ((1 - t) * x0 + t * n) + 2 * t + kept
        assert losses[b].item() == pytest.approx(((output - (n - x0)) ** 2).mean().item(), rel=rounding(32) + 1e-5)


def test_noise_and_masks_do_not_depend_on_the_prediction():
    flow, eps = (training_noise(0, 1, range(5), SHAPE, s, 0.3, 0.2, 8) for s in (PLAIN, build_schedule()))
    assert flow.t.dtype == torch.float32 and eps.t.dtype == torch.long
    assert flow.noise.shape == eps.noise.shape
    parts = [training_noise(0, 1, rows, SHAPE, PLAIN, 0.3, 0.2, 8) for rows in ([4, 1], [0], [3, 2])]
    for field in range(4):
        assert torch.equal(torch.cat([part[field] for part in parts]), flow[field][[4, 1, 0, 3, 2]])


def test_a_scheduler_that_does_not_fit_is_refused():
    assert fitting_schedulers("flow") == ["flow-euler", "flow-heun"]
    with pytest.raises(UserError, match="unipc does not work .* predicts flow; flow-euler, flow-heun do"):
        build_scheduler(registry.configure("scheduler", {"name": "unipc"}), "flow")
    with pytest.raises(UserError, match="flow-heun does not work .* predicts v; .*ddim.*unipc do"):
        build_scheduler(registry.configure("scheduler", {"name": "flow-heun"}), "v")


def test_settings_of_an_ldm_have_one_process():
    denoiser = {"name": "idiff-unet"}
    flow = LdmSettings(denoiser=denoiser, prediction="flow", flow={"shift": 1.5})
    written = flow.model_dump(mode="json")
    assert written["flow"] == {"mean": 0.0, "std": 1.0, "shift": 1.5} and "beta_schedule" not in written
    assert LdmSettings.from_json(written, "here") == flow
    assert ldm_schedule(flow) == FlowSchedule(FlowTimes(shift=1.5))
    assert "flow" not in LdmSettings(denoiser=denoiser).model_dump(mode="json")
    with pytest.raises(UserError, match="no noise schedule"):
        LdmSettings.from_json({**written, "beta_schedule": "cosine"}, "here")
    with pytest.raises(UserError, match="flow belongs to prediction flow"):
        LdmSettings.from_json({"denoiser": denoiser, "flow": {}}, "here")
