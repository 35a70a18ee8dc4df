"""The heads against the published ones at world size 1: logits, loss, gradients (float32)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tolerance import rounding
from torch.nn import functional as F

from facesyn_cli.plugins import registry

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", ("arcface", "cosface", "curricularface"))
def test_head_equals_the_published_one(name):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"head_{name}.npz").items()}
    head = registry.build("head", registry.configure("head", {"name": name})).with_classes(num_classes=20)
    head.kernel.data = golden["kernel"]
    embeddings = golden["emb"].clone().requires_grad_()
    labels = golden["labels"]
    cosine = rounding(terms=embeddings.shape[1])                          # of a product of two unit vectors
    plain = head.scale * head.cosines(embeddings)
    torch.testing.assert_close(plain, golden["orig"], rtol=0, atol=head.scale * cosine)
    head.observe(head.statistics(embeddings, head.target_cosines(embeddings, labels)), len(labels))
    if name == "curricularface":
        torch.testing.assert_close(head.t, golden["t"], rtol=0, atol=0.01 * cosine)  # t = 0.01 of a mean cosine
    logits = head(embeddings, labels)
    logit = head.scale * cosine * _steepest(golden["orig"] / head.scale, labels)
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=logit)
    loss = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, golden["loss"], rtol=0, atol=logit)
    loss.backward()
    for gradient, key in ((embeddings.grad, "grad_emb"), (head.kernel.grad, "grad_kernel")):
        largest = golden[key].abs().max().item()
        # an error of a logit is a relative error of its softmax, and of the gradient
        torch.testing.assert_close(gradient, golden[key], rtol=0, atol=head.scale * cosine * largest)


def _steepest(cosines: torch.Tensor, labels: torch.Tensor) -> float:
    """Bound how a head amplifies errors of cosines.

    Of the own class |d cos(theta + m) / d cos(theta)| = |sin(theta + m) / sin(theta)| <= 1 / sin(theta); of others
    1, and of CurricularFace's hard ones t + 2 cos(theta) < 3.
    """
    target = cosines.gather(1, labels[:, None])
    return max(3.0, float((1 - target.square()).rsqrt().max()))
