"""AdaFace, ElasticFace, MagFace, combined margin, NormFace and softmax against their formulas and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from facesyn_cli.models.heads.adaface import AdaFace, AdaFaceConfig
from facesyn_cli.models.heads.fixed_margin import AngularConfig, ArcFace, CosFace, CosFaceConfig
from facesyn_cli.plugins import registry

ANGLES = torch.tensor([0.3, 1.0, 1.8, 2.6, 3.1], dtype=torch.float64)
LABELS = torch.zeros(5, dtype=torch.int64)


def test_adaface_by_hand():
    head = _head("adaface")
    head.observe(torch.tensor([60.0, 4 * 232.0]), 4)  # mean 15, variance (928 - 900) / 3
    deviation = math.sqrt(28 / 3)
    assert head.norm_mean.item() == pytest.approx(15) and head.norm_deviation.item() == pytest.approx(deviation)
    head.observe(torch.tensor([80.0, 1600.0]), 4)     # mean 20, variance 0, at rate 0.01
    mean, deviation = 0.99 * 15 + 0.01 * 20, 0.99 * deviation
    assert head.norm_mean.item() == pytest.approx(mean) and head.norm_deviation.item() == pytest.approx(deviation)
    target = head(_on_circle(17.0), LABELS)[:, 0]
    z = (17 - mean) * 0.333 / deviation
    assert 0.1 < z < 0.9
    for theta, value in zip(ANGLES.tolist(), target.tolist(), strict=True):
        angle = min(max(theta - 0.4 * z, 1e-3), math.pi - 1e-3)
        assert value == pytest.approx(64 * (math.cos(angle) - (0.4 + 0.4 * z)), abs=1e-4)


def test_adaface_reaches_from_arcface_over_cosface_to_an_angle_that_gives_way():
    head = _head("adaface")
    head.observe(torch.tensor([200.0, 10 * 400 + 9 * 25.0]), 10)  # mean 20, deviation 5: one unit is 15.015
    inside = slice(0, 4)                                          # theta + m below pi
    for norm, expected in (
        (0.01, ArcFace(AngularConfig(margin=0.4)).with_classes(2, 2)),         # z = -1
        (20.0, CosFace(CosFaceConfig(margin=0.4)).with_classes(2, 2)),         # z = 0
    ):
        expected.kernel.data = torch.eye(2)
        got = head(_on_circle(norm), LABELS)[inside]
        torch.testing.assert_close(got, expected.double()(_on_circle(1.0), LABELS)[inside], rtol=0, atol=1e-4)
    easy = head(_on_circle(99.0), LABELS)[1, 0].item()            # z = 1
    assert easy == pytest.approx(64 * (math.cos(1.0 - 0.4) - 0.8), abs=1e-4)


def test_adaface_takes_norms_without_gradient_and_clipped():
    head = _head("adaface")
    rows = torch.tensor([[0.0, 0.0], [300.0, 400.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    sums = head.statistics(rows, torch.ones(3))
    assert not sums.requires_grad
    torch.testing.assert_close(sums, torch.tensor([0.001 + 100 + 5, 1e-6 + 1e4 + 25], dtype=torch.float64))
    head.observe(sums, 3)
    head(rows, LABELS[:3])[2, 0].backward()
    assert (rows.grad[2] @ rows[2]).abs().item() < 1e-9           # moving along the embedding changes nothing


def test_adaface_survives_a_batch_of_one_and_of_equal_norms():
    for norms in ([5.0], [5.0, 5.0, 5.0]):
        head = AdaFace(AdaFaceConfig()).with_classes(2, 2)
        embeddings = torch.tensor([[norm, 0.0] for norm in norms])
        head.observe(head.statistics(embeddings, torch.ones(len(norms))), len(norms))
        assert head.norm_deviation.item() == pytest.approx(0, abs=1e-3)
        assert torch.isfinite(head(embeddings, LABELS[: len(norms)])).all()


def test_adaface_state_is_saved():
    head = _head("adaface")
    head.observe(torch.tensor([60.0, 1000.0]), 4)
    again = _head("adaface")
    again.load_state_dict(head.state_dict())
    again.observe(torch.tensor([20.0, 200.0]), 2)
    head.observe(torch.tensor([20.0, 200.0]), 2)
    assert again.norm_mean.item() == head.norm_mean.item() != 10


def test_magface_by_hand():
    head = _head("magface")
    for norm, margin in ((5.0, 0.45), (10.0, 0.45), (60.0, 0.625), (110.0, 0.8), (500.0, 0.8)):
        target = head(_on_circle(norm), LABELS)[:, 0]
        for theta, value in zip(ANGLES.tolist(), target.tolist(), strict=True):
            inside = theta + margin < math.pi
            expected = math.cos(theta + margin) if inside else math.cos(theta) - margin * math.sin(margin)
            assert value == pytest.approx(64 * expected, abs=1e-9)
        a = min(max(norm, 10), 110)
        extra = head.extra_losses(_on_circle(norm))
        torch.testing.assert_close(extra, torch.full((5,), 35 * (1 / a + a / 110**2), dtype=torch.float64))


def test_magface_pulls_norms_up_to_the_largest_and_its_margin_holds_against_it():
    head = _head("magface")
    norms = torch.tensor([12.0, 60.0, 109.0], dtype=torch.float64, requires_grad=True)
    embeddings = norms[:, None] * torch.tensor([[math.cos(1.0), math.sin(1.0)]], dtype=torch.float64)
    (pull,) = torch.autograd.grad(head.extra_losses(embeddings).sum(), norms)
    torch.testing.assert_close(pull, 35 * (1 / 110**2 - 1 / norms.detach() ** 2))
    assert (pull < 0).all()
    embeddings = norms[:, None] * torch.tensor([[math.cos(1.0), math.sin(1.0)]], dtype=torch.float64)
    losses = F.cross_entropy(head(embeddings, LABELS[:3]), LABELS[:3], reduction="sum")
    (push,) = torch.autograd.grad(losses, norms)
    assert (push > 0).all()


def test_magface_with_one_margin_is_arcface():
    head = _head("magface", margin=0.5, max_margin=0.5, norm_weight=0.0)
    arcface = ArcFace(AngularConfig(margin=0.5)).with_classes(2, 2).double()
    arcface.kernel.data = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(head(_on_circle(60.0), LABELS), arcface(_on_circle(60.0), LABELS))
    assert not head.extra_losses(_on_circle(60.0)).any()


@pytest.mark.parametrize(
    ("kind", "like"), [("arc", ArcFace(AngularConfig(margin=0.5))), ("cos", CosFace(CosFaceConfig(margin=0.35)))]
)
@pytest.mark.parametrize("plus", ["", "-plus"])
def test_elasticface_without_deviation_is_the_head_it_grew_from(kind, like, plus):
    head = _head(f"elasticface-{kind}{plus}", deviation=0.0)
    expected = like.with_classes(2, 2).double()
    expected.kernel.data = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(head.train()(_on_circle(2.0), LABELS), expected(_on_circle(2.0), LABELS))
    moving = _head(f"elasticface-{kind}{plus}").eval()
    torch.testing.assert_close(moving(_on_circle(2.0), LABELS), expected(_on_circle(2.0), LABELS))


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("elasticface-arc", 0.5, 0.05), ("elasticface-arc-plus", 0.5, 0.0175), ("elasticface-cos", 0.35, 0.05)],
)
def test_elasticface_draws_margins_around_the_mean(name, mean, deviation):
    head = _head(name).train()
    torch.manual_seed(1)
    margins = head.draw_margins(torch.zeros(20_000, 1, dtype=torch.float64))
    assert margins.mean().item() == pytest.approx(mean, abs=4 * deviation / 141)
    assert margins.std().item() == pytest.approx(deviation, rel=0.02)


def test_elasticface_uses_the_margins_it_draws():
    head = _head("elasticface-cos").train()
    torch.manual_seed(5)
    margins = head.draw_margins(ANGLES.cos()[:, None])[:, 0]
    assert margins.unique().numel() == 5
    torch.manual_seed(5)
    torch.testing.assert_close(head(_on_circle(3.0), LABELS)[:, 0], 64 * (ANGLES.cos() - margins))


@pytest.mark.parametrize("kind", ["arc", "cos"])
def test_elasticface_plus_gives_harder_images_larger_margins(kind):
    target = torch.tensor([[0.9], [-0.5], [0.2], [0.6]], dtype=torch.float64)
    plus, plain = _head(f"elasticface-{kind}-plus", deviation=0.1), _head(f"elasticface-{kind}", deviation=0.1)
    for seed in range(5):
        torch.manual_seed(seed)
        drawn = plain.train().draw_margins(target)[:, 0]
        torch.manual_seed(seed)
        margins = plus.train().draw_margins(target)[:, 0]
        assert sorted(margins.tolist()) == sorted(drawn.tolist())
        assert margins[1] > margins[2] > margins[3] > margins[0]


def test_combined_margin_by_hand_and_beyond_pi():
    head = _head("combined-margin", factor=1.2, angle=0.3, cosine=0.15)
    target = head(_on_circle(2.0), LABELS)[:, 0]
    assert 1.2 * 2.6 + 0.3 > math.pi > 1.2 * 1.8 + 0.3
    for theta, value in zip(ANGLES.tolist(), target.tolist(), strict=True):
        phi = 1.2 * theta + 0.3
        expected = math.cos(phi) if phi <= math.pi else -2 - math.cos(phi)
        assert value == pytest.approx(64 * (expected - 0.15), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "like"),
    [
        ({"angle": 0.5, "cosine": 0.0}, ArcFace(AngularConfig(margin=0.5)).with_classes(2, 2)),
        ({"angle": 0.0, "cosine": 0.4}, CosFace(CosFaceConfig(margin=0.4)).with_classes(2, 2)),
        ({"angle": 0.0, "cosine": 0.0}, CosFace(CosFaceConfig(margin=0.0)).with_classes(2, 2)),
    ],
)
def test_combined_margin_reduces_to_its_parts_below_pi(settings, like):
    like.kernel.data = torch.eye(2)
    embeddings = _on_circle(2.0)[:4]
    got = _head("combined-margin", **settings)(embeddings, LABELS[:4])
    torch.testing.assert_close(got, like.double()(embeddings, LABELS[:4]))


def test_normface_is_the_scaled_cosine_and_softmax_the_linear_layer():
    torch.testing.assert_close(_head("normface", scale=10.0)(_on_circle(7.0), LABELS)[:, 0], 10 * ANGLES.cos())
    head = registry.build("head", registry.configure("head", {"name": "softmax"})).with_classes(4, 3, seed=2)
    head.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    embeddings = torch.randn(2, 3)
    expected = torch.stack([embeddings @ head.kernel[:, j] + (j + 1) for j in range(4)], 1)
    torch.testing.assert_close(head(embeddings, torch.tensor([0, 1])), expected)
    torch.testing.assert_close(head.scores(embeddings), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("magface", {"min_norm": 120.0}),
        ("magface", {"margin": 0.9}),
        ("combined-margin", {"factor": 2.0}),
        ("adaface", {"concentration": 0.0}),
        ("elasticface-arc", {"deviation": -0.1}),
        ("normface", {"scale": 0.0}),
    ],
)
def test_settings_without_meaning_are_refused(name, settings):
    with pytest.raises(ValidationError):
        registry.configure("head", {"name": name, **settings})


def _head(name: str, **settings):
    """A head in float64 over two classes whose centers are the axes of the plane."""
    head = registry.build("head", registry.configure("head", {"name": name, **settings})).with_classes(2, 2).double()
    head.kernel.data = torch.eye(2, dtype=torch.float64)
    return head


def _on_circle(norm: float) -> torch.Tensor:
    """Embeddings of that norm whose angles to the first center are `ANGLES`."""
    return norm * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
