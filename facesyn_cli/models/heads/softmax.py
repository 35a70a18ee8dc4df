"""Plain softmax regression: logits w_j . f + b_j, nothing normalized; Bridle 1990, "Probabilistic interpretation of
feedforward classification network outputs"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facesyn_cli.models.heads.margin import Head
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class SoftmaxConfig(PluginConfig):
    """`softmax` has no settings."""


class Softmax(Head):
    """A linear layer with biases (K,) that are initialized to 0.

    Shapes: embeddings (B, E) -> logits (B, K).
    """

    def with_classes(self, num_classes: int, embedding_size: int = 512, seed: int = 0) -> Softmax:
        super().with_classes(num_classes, embedding_size, seed)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        return self

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, K) of embeddings (B, E); labels are not used."""
        return self.scores(embeddings)

    def scores(self, embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings.to(self.kernel.dtype) @ self.kernel + self.bias


@register("head", "softmax", Card("A linear layer without margin, the baseline of the margin heads."))
def build_softmax(cfg: SoftmaxConfig) -> nn.Module:
    """Build the plain softmax head."""
    return Softmax()
