"""Partial FC in one process against a whole classifier of the sampled classes; what cannot be divided is refused."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tolerance import rounding
from torch import nn

from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.heads.fixed_margin import AngularConfig, ArcFace
from facesyn_cli.models.heads.margin import Head, MarginHead, build_head
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN
from facesyn_cli.training.classifier import Group, WholeClassifier
from facesyn_cli.training.sharded_classifier import ShardedClassifier, check_shardable, sampled_classes

LABELS = torch.tensor([3, 17, 3, 9])
GROUP = Group(0, torch.empty(0), LABELS, torch.tensor([1.0, 0.5, 2.0, 1.0]))


def _sharded(rate: float | None) -> ShardedClassifier:
    return ShardedClassifier(ArcFace(AngularConfig(scale=16.0)), 20, 8, 1, processes("cpu"), rate)


def test_a_step_over_a_sample_is_one_over_a_head_of_these_classes():
    sharded, embeddings = _sharded(0.5), torch.randn(4, 8, requires_grad=True)
    chosen = torch.from_numpy(sampled_classes(20, 0.5, LABELS.numpy(), 1, step=7))
    whole = WholeClassifier(ArcFace(AngularConfig(scale=16.0)).with_classes(10, 8), 1)
    whole.head.kernel.data = sharded.head.kernel.detach()[:, chosen].clone()
    updaters = [torch.optim.SGD(c.head.parameters(), 0.1, 0.9, weight_decay=0.01) for c in (sharded, whole)]
    sharded.begin([GROUP], step=7)
    whole.begin([Group(0, GROUP.inputs, torch.searchsorted(chosen, LABELS), GROUP.weights)], step=7)
    assert torch.equal(sharded.target_cosines(embeddings, 0), whole.target_cosines(embeddings, 0))
    losses, gradients = [], []
    for classifier in (sharded, whole):
        loss = classifier.loss(embeddings, 0)
        gradients.append(torch.autograd.grad(loss.objective, [embeddings, classifier.head.kernel]))
        classifier.head.kernel.grad = gradients[-1][1]
        losses.append(torch.stack([loss.objective, loss.loss, loss.num_right]))
    for found, expected in ((losses[0], losses[1]), *zip(*gradients, strict=True)):
        torch.testing.assert_close(found, expected, rtol=0, atol=rounding(18, 16 * expected.abs().max()))
    before = _sharded(None).head.kernel
    with sharded.updating(updaters[0]):
        updaters[0].step()
    updaters[1].step()
    kernel, moments = sharded.head.kernel, updaters[0].state[sharded.head.kernel]["momentum_buffer"]
    assert kernel.shape == moments.shape == (8, 20)
    expected = whole.head.kernel, updaters[1].state[whole.head.kernel]["momentum_buffer"]
    for found, value in zip((kernel, moments), expected, strict=True):
        torch.testing.assert_close(found[:, chosen], value, rtol=0, atol=rounding(18, 16 * value.abs().max()))
    others = np.setdiff1d(np.arange(20), chosen)
    assert torch.equal(kernel[:, others], before[:, others]) and not moments[:, others].any()


def test_an_update_that_is_left_out_changes_nothing():
    """As fp16 leaves out a step; the next one goes on from the same centers and state."""
    sharded, before = _sharded(0.5), _sharded(None).head.kernel
    updater = torch.optim.Adam(sharded.head.parameters(), 0.1)
    for step in range(3):
        sharded.begin([GROUP], step)
        sharded.loss(torch.randn(4, 8), 0).objective.backward()
        with nullcontext() if step < 2 else pytest.raises(KeyError), sharded.updating(updater):
            if step == 2:
                raise KeyError
        assert torch.equal(sharded.head.kernel, before) and sharded.head.kernel.grad is None


def test_samples_hold_all_labels_and_are_drawn_by_seed_and_step():
    labels = np.array([[5, 900], [5, 17]])
    chosen = sampled_classes(1000, 0.1, labels, seed=1, step=2)
    assert len(chosen) == 100 and (np.diff(chosen) > 0).all() and {5, 17, 900} <= set(chosen.tolist())
    assert np.array_equal(chosen, sampled_classes(1000, 0.1, labels, seed=1, step=2))
    for seed, step in ((1, 3), (2, 2)):
        assert len(np.intersect1d(chosen, sampled_classes(1000, 0.1, labels, seed, step))) < 40
    assert sampled_classes(1000, 0.001, labels, 1, 2).tolist() == [5, 17, 900]
    drawn = [sampled_classes(100, 0.2, np.array([0]), 1, step) for step in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    assert counts[0] == 400 and counts.sum() == 400 * 20  # 19 of 99 others: 76.8 times each, deviation 7.9
    assert counts[1:].min() > 40 and counts[1:].max() < 115


@pytest.mark.parametrize("name", BUILTIN["head"])
def test_heads_on_cosines_can_be_divided(name: str):
    head = build_head(registry.configure("head", {"name": name}))
    if name != "softmax":
        return check_shardable(head, name)
    with pytest.raises(UserError, match="needs a head that puts a margin on cosines, such as arcface; softmax"):
        check_shardable(head, name)


class _Linear(Head):
    def forward(self, embeddings, labels):
        return embeddings @ self.kernel


class _OwnLogits(MarginHead):
    def forward(self, embeddings, labels):
        return self.cosines(embeddings)


class _Learned(MarginHead):
    def __init__(self) -> None:
        super().__init__(16.0)
        self.temperature = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("head", [_Linear(), _OwnLogits(16.0), _Learned()])
def test_plugins_that_compute_their_logits_otherwise_are_refused(head: Head):
    with pytest.raises(UserError, match="classifier.sharded=true needs"):
        check_shardable(head, "theirs")


def test_more_processes_than_classes_are_refused():
    group = SimpleNamespace(world_size=3, rank=0, device=torch.device("cpu"))
    with pytest.raises(UserError, match="2 identities cannot be divided over 3 processes; start fewer"):
        ShardedClassifier(ArcFace(AngularConfig()), 2, 8, 1, group)
