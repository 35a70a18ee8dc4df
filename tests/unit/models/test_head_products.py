"""What a step computes of the class centers: one product for logits and scores, single centers, parts of all."""

from __future__ import annotations

import pytest
import torch
from tolerance import rounding
from torch.nn import functional as F

from facesyn_cli.models.heads.class_centers import center_cosines, draw_centers
from facesyn_cli.models.heads.class_range import ClassRange, class_ranges
from facesyn_cli.models.heads.fixed_margin import AngularConfig, ArcFace
from facesyn_cli.models.heads.margin import Head
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN

LABELS = torch.tensor([0, 4, 2, 4])


@pytest.mark.parametrize("name", BUILTIN["head"])
def test_logits_and_scores_are_those_of_forward_and_scores_at_the_cost_of_one_product(name):
    head = registry.build("head", registry.configure("head", {"name": name})).with_classes(5, 8)
    embeddings = torch.randn(4, 8, requires_grad=True)
    torch.manual_seed(0)
    expected = head(embeddings, LABELS)
    products = []
    scores_of, cosines_of = head.scores, head.cosines
    head.cosines = lambda e: products.append(1) or cosines_of(e)
    if name == "softmax":
        head.scores = lambda e: products.append(1) or scores_of(e)
    torch.manual_seed(0)
    logits, scores = head.logits_and_scores(embeddings, LABELS)
    assert products == [1]
    assert torch.equal(logits, expected) and logits.requires_grad
    assert torch.equal(scores, scores_of(embeddings)) and not scores.requires_grad


class _Doubled(ArcFace):
    def forward(self, embeddings, labels):
        return 2 * super().forward(embeddings, labels)


class _Plain(Head):
    def forward(self, embeddings, labels):
        return 8 * self.cosines(embeddings)


@pytest.mark.parametrize("head", [_Doubled(AngularConfig()), _Plain()])
def test_a_plugin_with_logits_of_its_own_keeps_them(head):
    head.with_classes(5, 8)
    embeddings = torch.randn(4, 8, requires_grad=True)
    logits, scores = head.logits_and_scores(embeddings, LABELS)
    assert torch.equal(logits, head(embeddings, LABELS)) and torch.equal(scores, head.cosines(embeddings))
    assert logits.requires_grad and not scores.requires_grad


def test_target_cosines_read_the_centers_of_the_labels_alone():
    head = ArcFace(AngularConfig()).with_classes(5, 64)
    embeddings = torch.randn(4, 64)
    expected = head.cosines(embeddings).gather(1, LABELS[:, None])[:, 0]
    head.kernel.data[:, [1, 3]] = float("nan")
    torch.testing.assert_close(head.target_cosines(embeddings, LABELS), expected, rtol=0, atol=rounding(64))


@pytest.mark.parametrize("size", [1, 8, 16, 31, 32, 33, 47, 512])
@pytest.mark.parametrize("num_classes", [3, 7, 101])
def test_parts_of_the_centers_are_drawn_as_the_whole(size, num_classes):
    expected = torch.randn(size, num_classes, generator=torch.Generator().manual_seed(3)) * 0.01
    assert torch.equal(ArcFace(AngularConfig()).with_classes(num_classes, size, seed=3).kernel, expected)
    for count in (1, 2, 3):
        parts = [torch.empty(part.width, size).t() for part in class_ranges(num_classes, count)]
        for kernel, part in zip(parts, class_ranges(num_classes, count), strict=True):
            draw_centers(kernel, 3, part)
        assert torch.equal(torch.cat(parts, 1), expected)


def test_the_first_processes_hold_one_class_more():
    assert class_ranges(7, 3) == [ClassRange(0, 3, 7), ClassRange(3, 5, 7), ClassRange(5, 7, 7)]
    assert [part.width for part in class_ranges(8, 4)] == [2, 2, 2, 2]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_cosines_and_their_gradients_are_those_of_normalized_centers(is_sharded):
    """For both memory layouts of a kernel; a center of zeros has cosines and no gradient of its direction."""
    kernel = (torch.randn(7, 8).t() if is_sharded else torch.randn(8, 7)).double().requires_grad_()
    embeddings = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 7, dtype=torch.float64)
    expected = F.normalize(embeddings, dim=1) @ F.normalize(kernel, dim=0)
    found = center_cosines(embeddings, kernel)
    torch.testing.assert_close(found, expected)
    for got, wanted in zip(*(torch.autograd.grad((c * weights).sum(), [embeddings, kernel]) for c in (found, expected)),
                           strict=True):
        torch.testing.assert_close(got, wanted)
        assert got.stride() == wanted.stride()
    kernel.data[:, 2] = 0
    cosines = center_cosines(embeddings, kernel)
    assert not cosines[:, 2].any() and torch.autograd.grad(cosines.sum(), kernel)[0].isfinite().all()
