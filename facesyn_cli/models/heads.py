"""Margin heads: from embeddings and labels to logits whose target class is made harder.

With cos_j = cosine of the embedding and column j of the kernel, y the label, s the scale, m the margin:

* ArcFace, Deng et al. 2019, arXiv:1801.07698, Eq. 3: target s cos(theta_y + m). Where theta_y + m would
  pass pi (cos_y <= cos(pi - m)) the target is s (cos_y - m sin(pi - m)), which keeps it falling.
* CosFace, Wang et al. 2018, arXiv:1801.09414, Eq. 4: target s (cos_y - m).
* CurricularFace, Huang et al. 2020, arXiv:2004.00288, Eqs. 5-10: target as in ArcFace; other classes with
  cos_j > cos(theta_y + m) get s cos_j (t + cos_j), t a moving average of the mean target cosine.

A head plugin builds to a `HeadFactory`, not to a module: the number of classes is a fact of the training
set, not a setting.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class HeadFactory(Protocol):
    """What a head plugin's builder returns: makes the head once the number of classes is known."""

    def __call__(self, num_classes: int, embedding_size: int = 512, seed: int = 0) -> MarginHead: ...


class MarginHead(nn.Module):
    """Base of all heads: the kernel, the cosines and the scale; subclasses change the cosines.

    Everything is computed in float32 (or float64 when kernel and embeddings are), also under autocast: a
    scale of 64 turns a bfloat16 rounding of a cosine into an error of 0.25 in the logit.

    Args:
        num_classes: Number of classes K.
        embedding_size: Width E of an embedding.
        scale: s, factor of all logits.
        margin: m, in radians or as a cosine, as the subclass says.
        seed: Seed of the kernel's initial values, N(0, 0.01) as published.

    Shapes: B batch, E embedding, K classes.
    """

    uses_batch_mean = False  # True: `observe` must be called once a step, before `forward`

    def __init__(
        self,
        num_classes: int,
        embedding_size: int = 512,
        seed: int = 0,
        scale: float = 64.0,
        margin: float = 0.5,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale, self.margin = scale, margin
        self.kernel = nn.Parameter(torch.randn(embedding_size, num_classes, generator=generator) * 0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits to be used with plain softmax cross-entropy.

        Args:
            embeddings: (B, E), not normalised.
            labels: (B,) integers in [0, K).
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = self.cosines(embeddings)                                # (B, K)
            target = cosines.gather(1, labels[:, None])                       # (B, 1)
            is_target = F.one_hot(labels, cosines.shape[1]).bool()            # (B, K)
            return self.scale * self._apply_margin(cosines, target, is_target)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the (B, K) cosines between embeddings (B, E) and class centres."""
        embeddings = embeddings.to(self.kernel.dtype)
        return (F.normalize(embeddings, dim=1) @ F.normalize(self.kernel, dim=0)).clamp(-1, 1)

    def target_cosines(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B,) cosines between embeddings (B, E) and the centres of their own classes."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.cosines(embeddings).gather(1, labels[:, None])[:, 0]

    def observe(self, mean_target_cosine: Tensor) -> None:
        """Take in the mean target cosine () of the whole global batch; most heads do not need it."""

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor) -> Tensor:
        """Return the (B, K) cosines with the margin in them; `target` is (B, 1), `is_target` (B, K) bool."""
        raise NotImplementedError


class ArcFace(MarginHead):
    """Additive angular margin; `margin` in radians."""

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor) -> Tensor:
        return torch.where(is_target, _angular_target(target, self.margin), cosines)


class CosFace(MarginHead):
    """Additive cosine margin; `margin` is a cosine."""

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor) -> Tensor:
        return torch.where(is_target, target - self.margin, cosines)


class CurricularFace(MarginHead):
    """Angular margin, and hard negatives that count for more as training goes on; `margin` in radians.

    The buffer `t` () starts at 0. `observe` moves it towards the mean target cosine of the global batch;
    published code (TFace, rate 0.1) does so inside the forward pass, before t is used.

    Args:
        rate: alpha, weight of the new mean in t.
    """

    uses_batch_mean = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int = 512,
        seed: int = 0,
        scale: float = 64.0,
        margin: float = 0.5,
        rate: float = 0.1,
    ) -> None:
        super().__init__(num_classes, embedding_size, seed, scale, margin)
        self.rate = rate
        self.register_buffer("t", torch.zeros(1))

    @torch.no_grad()
    def observe(self, mean_target_cosine: Tensor) -> None:
        self.t.lerp_(mean_target_cosine.to(self.t), self.rate)

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor) -> Tensor:
        is_hard = cosines > _cos_of_sum(target, self.margin)
        others = torch.where(is_hard, cosines * (self.t + cosines), cosines)
        return torch.where(is_target, _angular_target(target, self.margin), others)


def _angular_target(cosine: Tensor, margin: float) -> Tensor:
    """Return cos(theta + m), or its falling continuation beyond theta = pi - m."""
    is_inside = cosine > math.cos(math.pi - margin)
    return torch.where(is_inside, _cos_of_sum(cosine, margin), cosine - math.sin(math.pi - margin) * margin)


def _cos_of_sum(cosine: Tensor, margin: float) -> Tensor:
    """Return cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m)."""
    # Differs from TFace: the derivative of sin(theta) is taken as 0 where cos(theta) is exactly +-1; the
    # published form gives inf or NaN there, also from the branch that is not selected. Equal elsewhere.
    squared_sine = 1 - cosine * cosine
    is_regular = squared_sine > 0
    sine = torch.where(is_regular, torch.where(is_regular, squared_sine, 1.0).sqrt(), 0.0)
    return cosine * math.cos(margin) - sine * math.sin(margin)


class AngularConfig(PluginConfig):
    """Settings of `arcface`."""

    scale: float = Field(default=64.0, gt=0)                    # s, factor of all logits
    margin: float = Field(default=0.5, ge=0, lt=math.pi / 2)    # m, radians


class CosFaceConfig(PluginConfig):
    """Settings of `cosface`."""

    scale: float = Field(default=64.0, gt=0)                    # s, factor of all logits
    margin: float = Field(default=0.4, ge=0, lt=1)              # m, a cosine


class CurricularFaceConfig(AngularConfig):
    """Settings of `curricularface`."""

    rate: float = Field(default=0.1, gt=0, le=1)                # alpha, weight of the newest mean in t


@register("head", "arcface", Card("Additive angular margin.", "Deng et al. 2019, arXiv:1801.07698"))
def build_arcface(cfg: AngularConfig) -> HeadFactory:
    """Return the factory of ArcFace heads."""
    return partial(ArcFace, scale=cfg.scale, margin=cfg.margin)


@register("head", "cosface", Card("Additive cosine margin.", "Wang et al. 2018, arXiv:1801.09414"))
def build_cosface(cfg: CosFaceConfig) -> HeadFactory:
    """Return the factory of CosFace heads."""
    return partial(CosFace, scale=cfg.scale, margin=cfg.margin)


@register(
    "head", "curricularface",
    Card("Angular margin; hard negatives count for more over time.", "Huang et al. 2020, arXiv:2004.00288"),
)
def build_curricularface(cfg: CurricularFaceConfig) -> HeadFactory:
    """Return the factory of CurricularFace heads."""
    return partial(CurricularFace, scale=cfg.scale, margin=cfg.margin, rate=cfg.rate)
