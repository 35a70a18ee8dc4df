from __future__ import annotations

import pytest
import torch

from facesyn_cli.diffusion.guidance import Step
from facesyn_cli.plugins import registry

EARLY = torch.tensor([1.0, 0.25])
OUTPUTS = {"positive": torch.tensor([2.0, -1.0]), "negative": torch.tensor([0.5, 3.0])}


def make(**settings):
    return registry.build("guidance", registry.configure("guidance", settings))


def step(index=0, num_steps=10):
    return Step(index, num_steps, 1 - (index + 0.5) / num_steps)


def predict(guidance, at=None):
    """Return the output at a step, and under which contexts the network was evaluated."""
    at, calls = at or step(), []

    class Network:
        def __call__(self, context):
            calls.append(context)
            return OUTPUTS[context]

        def pair(self, first, second):
            return self(first), self(second)

        def with_early(self, context):
            return self(context), EARLY

    output = guidance.begin("positive", "negative")(Network(), at)
    assert guidance.evaluations(at) == len(calls)
    return output, calls


def test_none_evaluates_the_contexts_alone():
    output, calls = predict(make(name="none"))
    assert torch.equal(output, OUTPUTS["positive"])
    assert calls == ["positive"]


@pytest.mark.parametrize("name", ["cfg", "negfacediff"])
@pytest.mark.parametrize("w", [0.25, 0.5, 1.0])
def test_scale_is_one_plus_the_w_of_the_papers(name, w):
    output, _ = predict(make(name=name, scale=1 + w))
    torch.testing.assert_close(output, (1 + w) * OUTPUTS["positive"] - w * OUTPUTS["negative"])


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_scoremix_is_a_convex_mix(weight):
    output, _ = predict(make(name="scoremix", weight=weight))
    torch.testing.assert_close(output, weight * OUTPUTS["positive"] + (1 - weight) * OUTPUTS["negative"])


@pytest.mark.parametrize("scale", [0, 1.5, 2])
def test_internal_extrapolates_from_the_early_prediction_in_one_evaluation(scale):
    output, calls = predict(make(name="internal", scale=scale))
    torch.testing.assert_close(output, EARLY + scale * (OUTPUTS["positive"] - EARLY))
    assert calls == ["positive"]


def test_internal_is_off_at_scale_one_and_outside_of_its_interval():
    assert torch.equal(predict(make(name="internal", scale=1))[0], OUTPUTS["positive"])
    guidance = make(name="internal", scale=2, start=0.2, end=0.5)
    guided = [not torch.equal(predict(guidance, step(i))[0], OUTPUTS["positive"]) for i in range(10)]
    assert guided == [2 <= i < 5 for i in range(10)]


def test_scale_zero_is_the_empty_context():
    assert torch.equal(predict(make(name="cfg", scale=0))[0], OUTPUTS["negative"])


@pytest.mark.parametrize("name", ["cfg", "negfacediff", "adaptdiff"])
def test_scale_one_is_off_and_costs_one_evaluation(name):
    output, calls = predict(make(name=name, scale=1))
    assert torch.equal(output, OUTPUTS["positive"])
    assert calls == ["positive"]


def test_interval_limits_the_guided_steps():
    guidance = make(name="cfg", scale=2, start=0.2, end=0.5)
    assert [guidance.evaluations(step(i)) for i in range(10)] == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert torch.equal(predict(guidance, step(1))[0], OUTPUTS["positive"])
    assert torch.equal(predict(guidance, step(2))[0], 2 * OUTPUTS["positive"] - OUTPUTS["negative"])


@pytest.mark.parametrize("t", [999, 500, 0])
def test_adaptdiff_grows_as_the_noise_falls(t):
    """w(t) = w (1 - t / T) with w = 1: nothing at t = T, all of it at t = 0."""
    w = 1 - t / 1000
    output, _ = predict(make(name="adaptdiff"), Step(0, 10, t / 1000))
    torch.testing.assert_close(output, (1 + w) * OUTPUTS["positive"] - w * OUTPUTS["negative"])


@pytest.mark.parametrize("t", [999, 500, 0])
def test_adaptdiff_in_reverse_falls_with_the_noise(t):
    w = t / 1000
    output, _ = predict(make(name="adaptdiff", reverse=True), Step(0, 10, t / 1000))
    torch.testing.assert_close(output, (1 + w) * OUTPUTS["positive"] - w * OUTPUTS["negative"])


def test_defaults_are_the_published_strengths():
    assert registry.configure("guidance", {"name": "negfacediff"}).scale == 1 + 0.5
    assert registry.configure("guidance", {"name": "adaptdiff"}).scale == 1 + 1


@pytest.mark.parametrize("name", ["negfacediff", "adaptdiff"])
def test_whom_the_negative_is(name):
    assert make(name=name, negative="empty").negatives is None
    assert [make(name=name, negative=n).negatives for n in ("close", "random")] == ["close", "random"]


@pytest.mark.parametrize("bad", [{"start": 0.5, "end": 0.5}, {"start": 0.9, "end": 0.1}, {"scale": -1}, {"w": 1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(name="cfg", **bad)


@pytest.mark.parametrize("bad", [{"scale": 0.5}, {"negative": "nearest"}])
def test_bad_negatives_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(name="negfacediff", **bad)
