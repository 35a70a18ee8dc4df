"""Learning rates against closed forms and torch's own schedulers; optimizers and sums of gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from facesyn_cli.training import optimization
from facesyn_cli.training.optimization import (
    LrSchedule,
    OptimizerSettings,
    build_optimizer,
    cosine,
    cosine_warm_restarts,
    decay_groups,
    depends_on_total,
    drops,
    reduce_gradients,
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


def test_gradients_of_processes_are_added_up_in_buckets(monkeypatch):
    monkeypatch.setattr(optimization, "_BUCKET", 5)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 2, 7, 4, 1)] for _ in range(2))
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        mine.grad = torch.rand(len(mine)) if number not in (2, 4) else None    # one process lacks the gradient of 2,
        other.grad = torch.rand(len(other)) if number not in (1, 4) else None  # the other that of 1, both that of 4
    expected = [sum(p.grad for p in pair if p.grad is not None) for pair in list(zip(ours, theirs, strict=True))[:4]]
    sent = [torch.tensor([float(p.grad is not None) for p in theirs])]
    sizes = []

    def add_theirs(mine: torch.Tensor) -> torch.Tensor:
        if not sizes:
            sizes.append(len(mine))
            return mine + sent[0]
        at = sum(sizes[1:])
        sizes.append(len(mine))
        flat = torch.cat([torch.zeros(len(p)) if p.grad is None else p.grad for p in theirs[:4]])
        return mine + flat[at : at + len(mine)]

    device = torch.device("cpu")
    reduce_gradients(ours, SimpleNamespace(world_size=2, device=device, sum=add_theirs))
    assert sizes == [5, 5, 7, 4] and ours[4].grad is None
    for parameter, total in zip(ours[:4], expected, strict=True):
        assert torch.equal(parameter.grad, total)
    reduce_gradients(ours, SimpleNamespace(world_size=1))
    assert torch.equal(ours[0].grad, expected[0])


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
