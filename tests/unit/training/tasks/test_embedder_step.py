"""The loss of a student against the formulas written out, and steps cut over processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerance import products_of, rounding
from torch import nn
from torch.nn import functional as F

from facesyn_cli.training.tasks.embedder_step import Distiller, TaughtGroup, agreement, relational_loss


def _student(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(6 * 3 * 3, 5),
    ).train()


def _groups(count: int = 3, size: int = 4) -> list[TaughtGroup]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaughtGroup(
            number,
            torch.randint(0, 256, (size, 8, 8, 3), generator=generator, dtype=torch.uint8),
            F.normalize(torch.randn(size, 5, generator=generator), dim=1),
        )
        for number in range(count)
    ]


def _distiller(student: nn.Module, weight: float = 0.0, groups_per_pass: int = 1) -> Distiller:
    return Distiller(student, 7, 12, "fp32", weight, groups_per_pass)


def test_several_groups_in_a_pass_are_a_pass_for_each():
    alone, together = _distiller(_student(0.3), 2.0), _distiller(_student(0.3), 2.0, groups_per_pass=2)
    torch.testing.assert_close(together.accumulate(_groups(), 5), alone.accumulate(_groups(), 5))
    gradients = [p.grad for p in alone.student.parameters()]
    atol = rounding(products_of(alone.student), max(gradient.abs().max() for gradient in gradients))
    for parameter, gradient in zip(together.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=atol)


def _tolerance(gradients: list[torch.Tensor]) -> float:
    """Return what rounding may change of gradients: forth, back, and once more for the weights."""
    return rounding(3 * products_of(_student()), max(gradient.abs().max() for gradient in gradients))


def test_relations_are_the_cosines_of_pairs_of_different_photos() -> None:
    embeddings, targets = (F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1) for _ in range(2))
    differences = [
        (embeddings[i] @ embeddings[j] - targets[i] @ targets[j]).item() ** 2
        for i in range(5) for j in range(5) if i != j
    ]
    assert relational_loss(embeddings, targets).item() == pytest.approx(np.mean(differences), rel=1e-12)


def test_relations_do_not_mind_a_turn_of_the_whole_space() -> None:
    targets = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert relational_loss(targets @ turn, targets).item() == pytest.approx(0, abs=1e-24)
    assert relational_loss(targets[:1], targets[:1]).item() == 0


def test_step_is_the_mean_loss_of_replicas_that_see_one_group_each() -> None:
    weight, groups, student = 2.5, _groups(), _student()
    figures = _distiller(student, weight).accumulate(groups, step=0)
    expected, gradients = np.zeros(3), None
    for group in groups:
        replica = _student()
        out = F.normalize(replica(group.inputs.movedim(-1, 1).float() / 127.5 - 1), dim=1)
        cosine, relational = F.cosine_similarity(out, group.targets).mean(), relational_loss(out, group.targets)
        loss = (1 - cosine + weight * relational) / len(groups)
        own = torch.autograd.grad(loss, list(replica.parameters()))
        gradients = own if gradients is None else [a + b for a, b in zip(gradients, own, strict=True)]
        expected += np.array([loss.item(), cosine.item() / 3, relational.item() / 3])
        if group.number == 0:
            first = replica
    np.testing.assert_allclose(figures.numpy(), expected, rtol=1e-5)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_tolerance(gradients))
    for name, buffer in first.named_buffers():
        torch.testing.assert_close(student.get_buffer(name), buffer)


def test_shares_of_two_processes_add_up_to_one_process() -> None:
    groups, alone = _groups(), _student(dropout=0.4)
    expected = _distiller(alone, 1.0).accumulate(groups, step=5)
    total, gradients = torch.zeros(3), None
    for share in (groups[:1], groups[1:]):
        process = _student(dropout=0.4)
        total += _distiller(process, 1.0).accumulate(share, step=5)
        own = [p.grad for p in process.parameters()]
        gradients = own if gradients is None else [a + b for a, b in zip(gradients, own, strict=True)]
    torch.testing.assert_close(total, expected)
    for parameter, gradient in zip(alone.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_tolerance(gradients))


def test_a_student_in_training_comes_to_the_targets() -> None:
    groups, student, losses = _groups(), _student(), []
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss, cosine, relational = _distiller(student).accumulate(groups, step=0).tolist()
        optimizer.step()
        losses.append(loss)
        assert loss + cosine == pytest.approx(1, abs=1e-5) and relational == 0
    assert losses[-1] < 0.05 < losses[0]


def test_agreement_is_the_mean_cosine_and_the_share_of_photos_found() -> None:
    targets = torch.eye(4)
    embeddings = torch.tensor([[2.0, 0, 0, 0], [0, 1, 1.1, 0], [0, 0, 5, 0], [-1, 0, 0, 1]])
    found = agreement(embeddings, targets)
    cosines = [1, 1 / math.hypot(1, 1.1), 1, math.sqrt(0.5)]
    assert found["cosine"] == pytest.approx(np.mean(cosines)) and found["rank1"] == 0.75


def test_agreement_of_more_rows_than_fit_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = F.normalize(torch.randn(2100, 16, generator=generator), dim=1)
    embeddings = targets + 0.2 * torch.randn(2100, 16, generator=generator)
    scores = F.normalize(embeddings.double(), dim=1) @ targets.double().T
    found = agreement(embeddings, targets)
    assert found["rank1"] == (scores.argmax(1) == torch.arange(2100)).double().mean().item()
    assert 0.5 < found["rank1"] < 1 and found["cosine"] == pytest.approx(scores.diag().mean().item())
