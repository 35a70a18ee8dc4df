"""A step over groups against the same mathematics written out, and against itself cut differently."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerance import products_of, rounding
from torch import nn
from torch.nn import functional as F

from facesyn_cli.models.heads.margin import build_head
from facesyn_cli.plugins import registry
from facesyn_cli.training.classifier import Group, WholeClassifier
from facesyn_cli.training.tasks.fr_step import Recognizer


def test_step_is_data_parallel_training_with_one_process_a_group():
    """Replicas that see one group each, gradients of the global mean, statistics of the first replica."""
    trained, groups = _recognizer(), _groups()
    figures = trained.accumulate(groups, step=0)
    losses = 0.0
    gradients: list[torch.Tensor] | None = None
    for group in groups:
        replica = _recognizer()
        embeddings = replica.backbone(group.inputs.movedim(-1, 1).float() / 127.5 - 1)
        logits = replica.head(embeddings, group.labels)
        loss = sum(w * F.cross_entropy(row[None], y[None]) for w, row, y in zip(
            group.weights, logits, group.labels, strict=True)) / 12
        losses += loss.item()
        own = torch.autograd.grad(loss, _parameters(replica))
        gradients = list(own) if gradients is None else [a + b for a, b in zip(gradients, own, strict=True)]
        if group.number == 0:
            first_replica = replica
    assert figures[0].item() == pytest.approx(losses, rel=1e-5)
    for parameter, gradient in zip(_parameters(trained), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_tolerance(trained, gradients))
    for name, buffer in first_replica.backbone.named_buffers():
        torch.testing.assert_close(trained.backbone.get_buffer(name), buffer)


@pytest.mark.parametrize("head", ["arcface", "curricularface", "adaface", "elasticface-arc", "magface"])
def test_shares_of_two_processes_add_up_to_one_process(head):
    groups = _groups()
    alone = _recognizer(head, dropout=0.3)
    expected = alone.accumulate(groups, step=5)
    means = []
    for share in (groups[:1], groups[1:2], groups[2:]):  # what the all-reduce would add up
        probe = _recognizer(head, dropout=0.3, all_reduce=lambda x: means.append(x.clone()) or x)
        probe.accumulate(share, step=5)
    total = sum(means) if means else None
    gradients, figures = None, 0
    for share in (groups[:1], groups[1:]):
        process = _recognizer(head, dropout=0.3, all_reduce=lambda x: total)
        figures = figures + process.accumulate(share, step=5)
        own = [p.grad for p in _parameters(process)]
        gradients = own if gradients is None else [a + b for a, b in zip(gradients, own, strict=True)]
    torch.testing.assert_close(figures, expected)
    for parameter, gradient in zip(_parameters(alone), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_tolerance(alone, gradients))


def test_curricularface_sees_the_mean_of_the_whole_batch_before_its_first_loss():
    trained, groups = _recognizer("curricularface"), _groups()
    reference = copy.deepcopy(trained)
    trained.accumulate(groups, step=0)
    cosines = []
    for group in groups:
        embeddings = reference.backbone(group.inputs.movedim(-1, 1).float() / 127.5 - 1)
        cosines.append(reference.head.target_cosines(embeddings, group.labels))
    tolerance = 0.1 * rounding(products_of(trained.backbone, trained.head))
    assert trained.head.t.item() == pytest.approx(0.1 * torch.cat(cosines).mean().item(), abs=tolerance)
    assert trained.backbone[1].num_batches_tracked == 1


def test_weights_scale_the_loss_of_their_images():
    plain, halved = _recognizer(), _recognizer()
    groups = _groups()
    half = [Group(g.number, g.inputs, g.labels, g.weights / 2) for g in groups]
    torch.testing.assert_close(halved.accumulate(half, 0)[0], plain.accumulate(groups, 0)[0] / 2)
    torch.testing.assert_close(halved.head.kernel.grad, plain.head.kernel.grad / 2)


def test_extra_losses_of_a_head_reach_loss_and_gradients_with_the_images_weights():
    plain, extra = _recognizer("magface", norm_weight=0.0), _recognizer("magface", norm_weight=35.0)
    groups = _groups()
    for recognizer in (plain, extra):
        recognizer.backbone[-1].weight.data *= 100  # norms between the ends of MagFace's range
    difference = extra.accumulate(groups, 0)[0] - plain.accumulate(groups, 0)[0]
    expected = 0.0
    replica = copy.deepcopy(extra)
    for group in groups:
        embeddings = replica.backbone(group.inputs.movedim(-1, 1).float() / 127.5 - 1)
        expected = expected + (group.weights * replica.head.extra_losses(embeddings)).sum() / 12
    assert difference.item() == pytest.approx(expected.item(), rel=1e-3)
    gradient = torch.autograd.grad(expected, replica.backbone[-1].weight)[0]
    got = extra.backbone[-1].weight.grad - plain.backbone[-1].weight.grad
    assert gradient.abs().max() > 0
    torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


def test_top1_is_judged_without_the_margin():
    trained = _recognizer()
    groups = _groups()
    with torch.no_grad():
        right = 0
        for group in groups:
            embeddings = copy.deepcopy(trained.backbone)(group.inputs.movedim(-1, 1).float() / 127.5 - 1)
            right += (trained.head.cosines(embeddings).argmax(1) == group.labels).sum().item()
    assert trained.accumulate(groups, 0)[1].item() == pytest.approx(right / 12)


def test_dropout_follows_step_and_group_only():
    figures = []
    for step in (1, 1, 2):
        torch.rand(3)
        figures.append(_recognizer(dropout=0.5).accumulate(_groups(), step)[0].item())
    assert figures[0] == figures[1] != figures[2]


@pytest.mark.parametrize("head", ["elasticface-arc", "elasticface-cos-plus"])
def test_random_margins_follow_seed_step_and_group_only(head):
    """Not what the backbone drew: a network with dropout at rate 0 gets the margins of one without."""
    losses = []
    for dropout, step in ((0.0, 1), (1e-12, 1), (0.0, 2)):
        losses.append(_recognizer(head, dropout=dropout, deviation=0.3).accumulate(_groups(), step)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and abs(losses[0] - losses[2]) > 1e-3


def _tolerance(recognizer: Recognizer, gradients: list[torch.Tensor]) -> float:
    """Return what rounding may change of gradients: an error of a logit is a relative error of the softmax."""
    products = products_of(recognizer.backbone, recognizer.head)
    return rounding(products, recognizer.head.scale * max(gradient.abs().max() for gradient in gradients))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("head", ["arcface", "curricularface", "elasticface-arc", "magface"])
def test_several_groups_in_a_pass_are_a_pass_for_each(head, size):
    alone, together = _recognizer(head, dropout=0.3), _recognizer(head, dropout=0.3, groups_per_pass=size)
    torch.testing.assert_close(together.accumulate(_groups(), step=5), alone.accumulate(_groups(), step=5))
    gradients = [p.grad for p in _parameters(alone)]
    for parameter, gradient in zip(_parameters(together), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=_tolerance(alone, gradients))
    for name, buffer in alone.backbone.named_buffers():
        torch.testing.assert_close(together.backbone.get_buffer(name), buffer)


def _recognizer(
    name: str = "arcface", dropout: float = 0.0, all_reduce=lambda x: x, groups_per_pass: int = 1, **settings
) -> Recognizer:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(36, 8)
    )
    head = build_head(registry.configure("head", {"name": name, "scale": 8.0, **settings}))
    classifier = WholeClassifier(head.with_classes(5, 8, seed=1), 0)
    return Recognizer(backbone, classifier, 0, 12, "fp32", all_reduce, groups_per_pass)


def _groups() -> list[Group]:
    generator = torch.Generator().manual_seed(1)
    return [
        Group(
            number,
            torch.randint(0, 256, (4, 8, 8, 3), generator=generator, dtype=torch.uint8),
            torch.randint(0, 5, (4,), generator=generator),
            torch.rand(4, generator=generator) + 0.5,
        )
        for number in range(3)
    ]


def _parameters(recognizer: Recognizer) -> list[nn.Parameter]:
    return [*recognizer.backbone.parameters(), *recognizer.head.parameters()]
