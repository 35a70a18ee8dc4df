"""The loss of a student against the formulas written out, steps cut over processes, and the average of norms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tolerance import products_of, rounding
from torch import nn
from torch.nn import functional as F

from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.ema import EmaSettings, ema_decay
from facesyn_cli.training.embedder_state import EmbedderState, StudentEma, take_step
from facesyn_cli.training.embedder_step import Distiller, TaughtGroup, relational_loss
from facesyn_cli.training.embedder_validation import agreement
from facesyn_cli.training.precision import loss_scaler


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


def _distiller(student: nn.Module, weight: float = 0.0) -> Distiller:
    return Distiller(student, 7, 12, torch.float32, weight)


def _state(student: nn.Module, ema: bool = False, lr: float = 0.1) -> EmbedderState:
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)
    average = StudentEma(student, EmaSettings(minimum=0.5)) if ema else None
    return EmbedderState(student, average, optimizer, loss_scaler("fp32", torch.device("cpu")))


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
        out = F.normalize(replica(group.pixels_u8.movedim(-1, 1).float() / 127.5 - 1), dim=1)
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
    groups, student = _groups(), _student()
    state, losses = _state(student, lr=0.5), []
    for _ in range(60):
        losses.append(take_step(state, _distiller(student), groups, None, lambda x: x))
    assert losses[-1] < 0.05 < losses[0]
    window = state.window.copy()
    means = state.take_window()
    assert window[-1] == 60 and means["loss"] == pytest.approx(np.mean(losses))
    assert means["loss"] + means["cosine"] == pytest.approx(1, abs=1e-5) and means["relational"] == 0
    assert state.window == [0.0] * 5 and state.take_window()["loss"] == 0


def test_a_gradient_that_is_not_finite_touches_nothing() -> None:
    groups, student = _groups(), _student()
    student[0].weight.data[0] = math.inf
    before = copy.deepcopy([p.data for p in student.parameters()])
    state = _state(student)
    with pytest.raises(UserError, match="before step 1: loss nan"):
        take_step(state, _distiller(student), groups, None, lambda x: x)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)) and state.step == 0


def test_clipping_bounds_the_step() -> None:
    groups, (free, bound) = _groups(), (_student(), _student())
    moved = []
    for student, clip in ((free, None), (bound, 1e-3)):
        before = torch.cat([p.detach().flatten().clone() for p in student.parameters()])
        take_step(_state(student, lr=1.0), _distiller(student), groups, clip, lambda x: x)
        after = torch.cat([p.detach().flatten() for p in student.parameters()])
        moved.append((after - before).norm().item())
    assert moved[1] == pytest.approx(1e-3, rel=1e-2) and moved[0] > 0.01


def test_the_average_holds_averaged_norms_too() -> None:
    student, groups = _student(), _groups()
    state = _state(student, ema=True)
    weight, mean = student[0].weight.detach().clone(), student[1].running_mean.clone()
    for step in range(1, 4):
        take_step(state, _distiller(student), groups, None, lambda x: x)
        decay = ema_decay(step, state.ema.settings)
        weight = decay * weight + (1 - decay) * student[0].weight.detach()
        mean = decay * mean + (1 - decay) * student[1].running_mean
    torch.testing.assert_close(state.result[0].weight, weight)
    torch.testing.assert_close(state.result[1].running_mean, mean)
    assert not torch.equal(state.result[1].running_mean, student[1].running_mean)
    assert state.result[1].num_batches_tracked == 3 and _state(student).result is student


def test_a_checkpoint_brings_everything_back(tmp_path) -> None:
    student, groups = _student(), _groups()
    state = _state(student, ema=True)
    take_step(state, _distiller(student), groups, None, lambda x: x)
    state.save(tmp_path, keep=1)
    other = _state(nn.Sequential(*copy.deepcopy(list(student))), ema=True)
    for p in other.student.parameters():
        p.data.zero_()
    other.restore(tmp_path, processes("cpu"))
    assert other.step == 1 and other.window == state.window
    for ours, theirs in ((state.student, other.student), (state.ema.module, other.ema.module)):
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(),
                                                     strict=True))
    with pytest.raises(UserError, match="does not fit this training; remove it"):
        _state(nn.Linear(3, 5)).restore(tmp_path, processes("cpu"))


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
