"""The heads against their formulas, written out per sample in float64 with angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from facesyn_cli.models.heads.fixed_margin import AngularConfig, ArcFace
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN

NAMES = tuple(BUILTIN["head"])


def test_arcface_is_the_cosine_of_the_wider_angle_and_falls_beyond_pi():
    cosines, labels = _cosines()
    logits = _head_on("arcface", cosines, scale=16.0, margin=0.5)(torch.eye(6, dtype=torch.float64), labels)
    expected = cosines.copy()
    for row, label in enumerate(labels.tolist()):
        theta = math.acos(cosines[row, label])
        inside = theta + 0.5 < math.pi
        expected[row, label] = math.cos(theta + 0.5) if inside else cosines[row, label] - 0.5 * math.sin(0.5)
    np.testing.assert_allclose(logits.detach().numpy(), 16 * expected, rtol=0, atol=1e-12)


def test_cosface_subtracts_the_margin_from_the_target_alone():
    cosines, labels = _cosines()
    logits = _head_on("cosface", cosines, scale=16.0, margin=0.35)(torch.eye(6, dtype=torch.float64), labels)
    expected = cosines.copy()
    expected[np.arange(6), labels.numpy()] -= 0.35
    np.testing.assert_allclose(logits.detach().numpy(), 16 * expected, rtol=0, atol=1e-12)


def test_curricularface_weighs_hard_negatives_by_the_moving_mean():
    cosines, labels = _cosines()
    head = _head_on("curricularface", cosines, scale=16.0, margin=0.5)
    embeddings = torch.eye(6, dtype=torch.float64)
    for _ in range(2):
        target = torch.from_numpy(cosines[np.arange(6), labels.numpy()])
        head.observe(head.statistics(embeddings, target), len(labels))
    mean = cosines[np.arange(6), labels.numpy()].mean()
    t = 0.1 * mean + 0.9 * 0.1 * mean
    assert head.t.item() == pytest.approx(t, abs=1e-15)
    expected, num_hard = cosines.copy(), 0
    for row, label in enumerate(labels.tolist()):
        theta = math.acos(cosines[row, label])
        for column in set(range(6)) - {label}:
            if cosines[row, column] > math.cos(theta + 0.5):
                expected[row, column] *= t + cosines[row, column]
                num_hard += 1
        inside = theta + 0.5 < math.pi
        expected[row, label] = math.cos(theta + 0.5) if inside else cosines[row, label] - 0.5 * math.sin(0.5)
    assert 0 < num_hard < 30
    np.testing.assert_allclose(head(embeddings, labels).detach().numpy(), 16 * expected, rtol=0, atol=1e-12)


def test_target_gradient_is_the_true_one():
    """cos 0.3, scale 16, margin 0.5: in-place implementations give -16.000, the formula -16.453."""
    cosine = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    head = ArcFace(AngularConfig(scale=16.0, margin=0.5)).with_classes(1, 1)
    logits = head.scale * head._apply_margin(cosine, cosine, torch.tensor([[True]]), cosine)
    (-logits).sum().backward()
    true = -16 * (math.cos(0.5) + math.sin(0.5) * 0.3 / math.sqrt(1 - 0.3**2))
    assert cosine.grad.item() == pytest.approx(true, abs=1e-12)
    assert cosine.grad.item() == pytest.approx(-16.453, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name):
    """Of loss and extra loss, for embeddings and class centers; embeddings move on a sphere of norm 13.

    AdaFace takes the norm without gradient, so that a difference quotient across norms would not see the same.
    """
    head = _build(name, num_classes=5, embedding_size=4).double()
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 4, 2])
    head.observe(torch.tensor([37.0, 470.0])[: head.num_statistics], 3)
    kernel = head.kernel.detach().clone().requires_grad_()

    def loss(directions, kernel):
        torch.manual_seed(0)  # ElasticFace draws
        embeddings = 13 * F.normalize(directions)
        arguments = (embeddings, labels)
        logits = torch.func.functional_call(head, {"kernel": kernel}, arguments)
        extra = head.extra_losses(embeddings)
        return F.cross_entropy(logits, labels) + (0 if extra is None else extra.sum())

    assert torch.autograd.gradcheck(loss, (directions, kernel))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_at_the_edges(name):
    """Cosines exactly 1 and -1, norms of 0, tiny and huge."""
    head = _build(name, num_classes=2, embedding_size=2)
    head.kernel.data = torch.eye(2)
    rows = [[3.0, 0.0], [-2.0, 0.0], [0.0, -1.0], [0.0, 0.0], [1e-12, 0.0], [1e6, 0.0], [110.0, 0.0], [-10.0, 0.0]]
    embeddings = torch.tensor(rows, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    assert head.target_cosines(embeddings, labels)[:3].tolist() == [1.0, -1.0, -1.0]
    target = head.target_cosines(embeddings.detach(), labels)
    head.observe(head.statistics(embeddings.detach(), target), len(labels))
    losses = F.cross_entropy(head(embeddings, labels), labels, reduction="none")
    extra = head.extra_losses(embeddings)
    losses = losses if extra is None else losses + extra
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(embeddings.grad).all() and torch.isfinite(head.kernel.grad).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "softmax"])
def test_no_head_makes_the_target_easier_as_its_angle_widens(name):
    head = _build(name, num_classes=2, embedding_size=2).double().eval()
    head.kernel.data = torch.eye(2, dtype=torch.float64)
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    embeddings = 50 * torch.stack([angles.cos(), angles.sin()], 1)
    target = head(embeddings, torch.zeros(len(angles), dtype=torch.int64))[:, 0]
    assert (target.diff() <= 1e-9).all()
    if name != "normface":  # and it is never easier than without a margin
        assert (target <= 64 * angles.cos() + 1e-4).all()


@pytest.mark.parametrize("name", ("arcface", "cosface"))
def test_margin_zero_is_plain_softmax(name):
    head = registry.build("head", registry.configure("head", {"name": name, "margin": 0}))
    head.with_classes(5, embedding_size=4)
    embeddings, labels = torch.randn(3, 4), torch.tensor([0, 4, 2])
    torch.testing.assert_close(head(embeddings, labels), 64 * head.cosines(embeddings))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_head(name):
    head = _build(name, num_classes=5, embedding_size=8)
    embeddings, labels = torch.randn(3, 8), torch.tensor([0, 4, 2])
    torch.manual_seed(0)
    expected = head(embeddings, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(embeddings, labels)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert head(embeddings.bfloat16(), labels).dtype == torch.float32


def test_kernel_is_seeded_and_narrow():
    kernel = _build("arcface", num_classes=200, seed=1).kernel
    assert kernel.shape == (512, 200)
    assert kernel.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.equal(kernel, _build("arcface", num_classes=200, seed=1).kernel)
    assert not torch.equal(kernel, _build("arcface", num_classes=200, seed=2).kernel)


def _build(name: str, **arguments):
    return registry.build("head", registry.configure("head", {"name": name})).with_classes(**arguments)


def _cosines() -> tuple[np.ndarray, torch.Tensor]:
    """Cosines whose targets are low, medium, high and beyond pi - m, and labels."""
    cosines = np.random.RandomState(0).uniform(-0.4, 0.4, (6, 6))
    labels = torch.tensor([5, 0, 3, 1, 1, 2])
    cosines[np.arange(6), labels.numpy()] = [-0.97, -0.2, 0.1, 0.5, 0.7, 0.39]
    return cosines, labels


def _head_on(name: str, cosines: np.ndarray, **settings):
    """A head in float64 that sees exactly these cosines for embeddings = identity matrix."""
    built = registry.build("head", registry.configure("head", {"name": name, **settings}))
    head = built.with_classes(cosines.shape[1], cosines.shape[0]).double()
    head.cosines = lambda embeddings: torch.from_numpy(cosines)
    return head
