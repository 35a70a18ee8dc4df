"""Learning rates against closed forms and torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from facesyn_cli.training.lr import (
    LrSettings,
    cosine,
    cosine_warm_restarts,
    depends_on_horizon,
    piecewise,
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


def test_piecewise_drops_at_its_milestones():
    assert [piecewise(step, (10, 20), 0.1) for step in (0, 9, 10, 19, 20, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_warmup_rises_to_one_and_multiplies_the_schedule():
    assert [warmup(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup(0, 0) == 1.0
    settings = LrSettings(name="cosine", warmup_steps=4)
    assert settings.factor(1, 8) == pytest.approx(0.5 * cosine(1, 8))


def test_each_name_gives_its_own_schedule():
    settings = {"first_cycle": 10, "cycle_factor": 2, "milestones": (5,), "drop": 0.5}
    factors = {
        name: LrSettings(name=name, **settings).factor(12, 24)
        for name in ("constant", "cosine", "cosine-warm-restarts", "piecewise")
    }
    expected = {
        "constant": 1.0, "cosine": 0.5, "piecewise": 0.5,
        "cosine-warm-restarts": 0.5 * (1 + math.cos(math.pi * 2 / 20)),
    }
    assert factors == pytest.approx(expected)


def test_only_the_plain_cosine_depends_on_the_horizon():
    for name in ("constant", "cosine", "cosine-warm-restarts", "piecewise"):
        settings = LrSettings(name=name, first_cycle=10, milestones=(5,))
        same = all(settings.factor(step, 30) == settings.factor(step, 60) for step in range(30))
        assert depends_on_horizon(name) is (not same)


def test_set_lr_honours_the_factor_of_a_group():
    first, second = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr_factor": 10.0}], lr=1.0)
    set_lr(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.2])


@pytest.mark.parametrize("settings", [{"milestones": (5, 3)}, {"milestones": (0,)}, {"name": "linear"}, {"minimum": 2}])
def test_wrong_settings_are_refused(settings: dict):
    with pytest.raises(ValidationError):
        LrSettings(**settings)
