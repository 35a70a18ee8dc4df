"""The average of the weights against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from facesyn_cli.training.ema import Ema, EmaSettings, ema_decay


def test_decay_is_the_intended_formula():
    settings = EmaSettings()
    assert [ema_decay(n, settings) for n in (0, 1)] == [0.0, 0.0]
    for n in (2, 3, 100, 10_000):
        assert ema_decay(n, settings) == pytest.approx(min(1 - n**-0.75, 0.9999), rel=1e-12)
    assert ema_decay(10**9, settings) == 0.9999
    assert ema_decay(1, EmaSettings(minimum=0.5)) == 0.5
    assert ema_decay(5, EmaSettings(inv_gamma=2.0, power=0.5)) == pytest.approx(1 - 3**-0.5)


def test_average_equals_the_closed_form():
    # Differs from IDiff-Face / ADMIS: their average is the last weights; here it must not be.
    settings = EmaSettings(power=0.75)
    module = nn.Linear(3, 2)
    ema = Ema(module, settings)
    rng = np.random.default_rng(0)
    expected = module.weight.detach().double().numpy()
    for n in range(1, 30):
        weights = rng.standard_normal((2, 3))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weights))
        ema.update(module, n)
        decay = ema_decay(n, settings)
        expected = decay * expected + (1 - decay) * module.weight.detach().double().numpy()
    average = ema.module.weight
    np.testing.assert_allclose(average.numpy(), expected, atol=1e-6)
    assert not torch.allclose(average, module.weight)


def test_first_update_copies_weights_and_buffers():
    module = nn.BatchNorm1d(4)
    ema = Ema(module, EmaSettings())
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(5.0)
        module.num_batches_tracked.fill_(7)
    ema.update(module, 1)
    assert torch.equal(ema.module.weight, module.weight)
    assert torch.equal(ema.module.running_mean, module.running_mean)
    assert ema.module.num_batches_tracked == 7


def test_the_copy_is_independent_float32_and_in_eval_mode():
    module = nn.Linear(2, 2).bfloat16()
    ema = Ema(module, EmaSettings())
    assert ema.module.weight.dtype == torch.float32 and not ema.module.weight.requires_grad
    assert not ema.module.training and module.training
    before = ema.module.weight.clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(ema.module.weight, before)


def test_running_statistics_are_averaged_and_other_buffers_copied():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    module[1].register_buffer("constant", torch.tensor([-0.0, 3.0]))
    ema = Ema(module, EmaSettings(minimum=0.5, maximum=0.5))
    module[0].running_mean.fill_(4.0)
    module[0].num_batches_tracked.fill_(9)
    module[1].constant[1] = 5.0
    ema.update(module, 1)
    assert ema.module[0].running_mean.tolist() == [2.0, 2.0] and ema.module[0].num_batches_tracked == 9
    assert ema.module[1].constant.tolist() == [0.0, 5.0] and ema.module[1].constant[0].signbit()
