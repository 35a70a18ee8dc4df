from __future__ import annotations

import pytest
import torch

from facesyn_cli.plugins import registry

POSITIVE, NEGATIVE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])


def make(**settings):
    return registry.build("guidance", registry.configure("guidance", settings))


def predict(guidance, index=0, num_steps=10):
    calls = []

    def positive():
        calls.append("positive")
        return POSITIVE

    def negative():
        calls.append("negative")
        return NEGATIVE

    eps = guidance.predict(positive, negative, index, num_steps)
    assert guidance.evaluations(index, num_steps) == len(calls)
    return eps, calls


def test_none_evaluates_the_contexts_alone():
    eps, calls = predict(make(name="none"))
    assert torch.equal(eps, POSITIVE)
    assert calls == ["positive"]


@pytest.mark.parametrize("w", [-0.5, 0.5, 1.0])
def test_scale_is_one_plus_the_w_of_the_papers(w):
    eps, _ = predict(make(name="cfg", scale=1 + w))
    torch.testing.assert_close(eps, (1 + w) * POSITIVE - w * NEGATIVE)


def test_scale_zero_is_the_empty_context():
    assert torch.equal(predict(make(name="cfg", scale=0))[0], NEGATIVE)


def test_scale_one_is_off_and_costs_one_evaluation():
    eps, calls = predict(make(name="cfg", scale=1))
    assert torch.equal(eps, POSITIVE)
    assert calls == ["positive"]


def test_interval_limits_the_guided_steps():
    guidance = make(name="cfg", scale=2, start=0.2, end=0.5)
    assert [guidance.evaluations(i, 10) for i in range(10)] == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert torch.equal(predict(guidance, 1)[0], POSITIVE)
    assert torch.equal(predict(guidance, 2)[0], 2 * POSITIVE - NEGATIVE)


@pytest.mark.parametrize("bad", [{"start": 0.5, "end": 0.5}, {"start": 0.9, "end": 0.1}, {"scale": -1}, {"w": 1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(name="cfg", **bad)
