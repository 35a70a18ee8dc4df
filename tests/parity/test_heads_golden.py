"""The heads against the published ones at world size 1: logits, loss, gradients (float32)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from facesyn_cli.plugins import registry

GOLDEN = Path(__file__).parent.parent / "golden"
LOGIT_TOLERANCE = 2e-5  # float32 rounding of logits up to 64


@pytest.mark.parametrize("name", ("arcface", "cosface", "curricularface"))
def test_head_equals_the_published_one(name):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"head_{name}.npz").items()}
    head = registry.build("head", registry.configure("head", {"name": name}))(num_classes=20)
    head.kernel.data = golden["kernel"]
    embeddings = golden["emb"].clone().requires_grad_()
    labels = golden["labels"]
    plain = head.scale * head.cosines(embeddings)
    torch.testing.assert_close(plain, golden["orig"], rtol=0, atol=LOGIT_TOLERANCE)
    head.observe(head.statistics(embeddings, labels), len(labels))
    if name == "curricularface":
        torch.testing.assert_close(head.t, golden["t"], rtol=1e-5, atol=0)
    logits = head(embeddings, labels)
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=LOGIT_TOLERANCE)
    loss = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-6, atol=0)
    loss.backward()
    for gradient, key in ((embeddings.grad, "grad_emb"), (head.kernel.grad, "grad_kernel")):
        largest = golden[key].abs().max().item()
        torch.testing.assert_close(gradient, golden[key], rtol=0, atol=1e-6 * largest)
