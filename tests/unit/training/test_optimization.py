"""Learning rates against closed forms and torch's own schedulers; and optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from facesyn_cli.training.optimization import (
    LrSchedule,
    OptimizerSettings,
    build_optimizer,
    cosine,
    cosine_warm_restarts,
    decay_groups,
    depends_on_total,
    drops,
    set_lr,
    warmup,
)


def test_warm_restarts_at_the_published_steps():
    for restart in (0, 10_000, 30_000, 70_000, 150_000, 310_000, 630_000):
        assert cosine_warm_restarts(restart, 10_000, 2) == 1.0
        if restart:
            assert cosine_warm_restarts(restart - 1, 10_000, 2) < 1e-7
    # the released file is of step 200,000, where the published rate is 5e-5 (1 + cos(pi 50 / 160))
    assert 1e-4 * cosine_warm_restarts(200_000, 10_000, 2) == pytest.approx(5e-5 * (1 + math.cos(math.pi * 50 / 160)))


@pytest.mark.parametrize(("first_cycle", "cycle_factor"), [(7, 1), (7, 2), (3, 3), (1, 2), (10, 1)])
def test_warm_restarts_equal_torch(first_cycle: int, cycle_factor: int):
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first_cycle, cycle_factor, eta_min=0.1)
    for step in range(100):
        expected = optimizer.param_groups[0]["lr"]
        assert cosine_warm_restarts(step, first_cycle, cycle_factor, 0.1) == pytest.approx(expected, abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_cosine_is_half_a_cosine_and_stays_down():
    assert [cosine(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert cosine(4, 4, minimum=0.2) == pytest.approx(0.2)


def test_the_rate_drops_at_its_milestones():
    assert [drops(step, (10, 20), 0.1) for step in (0, 9, 10, 19, 20, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_warmup_rises_to_one_and_multiplies_the_schedule():
    assert [warmup(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup(0, 0) == 1.0
    settings = LrSchedule(name="cosine", warmup_steps=4)
    assert settings.factor(1, 8) == pytest.approx(0.5 * cosine(1, 8))


def test_each_name_gives_its_own_schedule():
    settings = {"first_cycle": 10, "cycle_factor": 2, "milestones": (5,), "gamma": 0.5}
    factors = {
        name: LrSchedule(name=name, **settings).factor(12, 24)
        for name in ("constant", "cosine", "cosine-warm-restarts", "milestones")
    }
    expected = {
        "constant": 1.0, "cosine": 0.5, "milestones": 0.5,
        "cosine-warm-restarts": 0.5 * (1 + math.cos(math.pi * 2 / 20)),
    }
    assert factors == pytest.approx(expected)


def test_only_the_plain_cosine_depends_on_the_horizon():
    for name in ("constant", "cosine", "cosine-warm-restarts", "milestones"):
        settings = LrSchedule(name=name, first_cycle=10, milestones=(5,))
        same = all(settings.factor(step, 30) == settings.factor(step, 60) for step in range(30))
        assert depends_on_total(name) is (not same)


def test_milestones_count_in_any_unit():
    settings = LrSchedule(name="milestones", milestones=(2, 3), gamma=0.5)
    assert [settings.factor(step, 99, 4) for step in (0, 7, 8, 11, 12)] == [1, 1, 0.5, 0.5, 0.25]


def test_optimizers_are_those_of_torch():
    parameter = [torch.nn.Parameter(torch.zeros(()))]
    for name, expected in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        built = build_optimizer(parameter, OptimizerSettings(name=name, lr=0.5, weight_decay=0.25, momentum=0.75))
        assert type(built) is expected and built.defaults["lr"] == 0.5 and built.defaults["weight_decay"] == 0.25
        assert built.defaults.get("momentum", 0.75) == 0.75
        set_lr(built, 0.125)
        assert built.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_steps_are_those_of_the_plain_loop_in_any_memory_layout(name: str):
    """Gradients come in another layout than the weights; fused kernels would pair elements by their address."""
    settings = OptimizerSettings(name=name, lr=0.01, weight_decay=0.1)
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ours = torch.nn.Parameter(start.clone(memory_format=torch.channels_last))
    plain = torch.nn.Parameter(start.clone())
    optimizer = build_optimizer([ours], settings)
    assert optimizer.defaults["fused"] is True
    expected = {
        "adam": lambda: torch.optim.Adam([plain], 0.01, weight_decay=0.1, foreach=False),
        "adamw": lambda: torch.optim.AdamW([plain], 0.01, weight_decay=0.1, foreach=False),
        "sgd": lambda: torch.optim.SGD([plain], 0.01, momentum=0.9, weight_decay=0.1, foreach=False),
    }[name]()
    for step in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(step + 1))
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        expected.step()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_devices_without_fused_kernels_leave_the_choice_to_torch():
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(2, device="meta"))], OptimizerSettings())
    assert not optimizer.defaults["fused"]


def test_norms_are_free_of_decay_unless_published():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(2))
    decayed, free = decay_groups(network, 5e-4, decay_norms=False)
    assert [p.numel() for p in decayed["params"]] == [18, 2, 2] and decayed["weight_decay"] == 5e-4
    assert [p.numel() for p in free["params"]] == [2, 2] and free["weight_decay"] == 0
    (everything,) = decay_groups(network, 5e-4, decay_norms=True)
    assert len(everything["params"]) == 5


@pytest.mark.parametrize("settings", [{"milestones": (5, 3)}, {"milestones": (0,)}, {"name": "linear"}, {"minimum": 2}])
def test_wrong_settings_are_refused(settings: dict):
    with pytest.raises(ValidationError):
        LrSchedule(**settings)
