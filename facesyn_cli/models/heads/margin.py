"""Base classes of the classification heads: class centers, their cosines with embeddings, and margins.

Legend of every head: f embedding, a = |f| its norm, cos_j = cosine of f and column j of the kernel, theta_j its
angle, y the label, s the scale, m a margin. The loss is softmax cross-entropy of the logits.

The builder of a head plugin takes its settings and returns a `Head`. The number of classes depends on the training set:
`with_classes` creates the class centers and is called before any other method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facesyn_cli.config.fields import affects_result
from facesyn_cli.errors import UserError
from facesyn_cli.models.heads.class_centers import center_cosines, draw_centers, paired_cosines
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig


class Head(nn.Module):
    """Base class of all heads: class centers, and the hooks of a training step.

    A subclass implements `forward`; the other methods have defaults. The parameter `kernel` (E, K) exists after
    `with_classes`.

    The built-in heads compute in float32 (or float64 if kernel and embeddings do), also under autocast: with a scale of
    64, bfloat16 rounding of a cosine would be an error of 0.25 in the logit.

    Shapes: B batch, E embedding, K classes.
    """

    num_statistics = 0  # length of the sums that `observe` receives once per step, before `forward`
    kernel: nn.Parameter

    def with_classes(self, num_classes: int, embedding_size: int = 512, seed: int = 0) -> Head:
        """Create the class centers, and any other parameters of that size; return the head.

        Args:
            num_classes: Number of classes K.
            embedding_size: Width E of an embedding.
            seed: Seed of the kernel's initial values, N(0, 0.01) as published.
        """
        self.kernel = nn.Parameter(torch.empty(embedding_size, num_classes))
        if not self.kernel.is_meta:
            draw_centers(self.kernel.data, seed)
        return self

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, K), of embeddings (B, E) not normalized and labels (B,) in [0, K)."""
        raise NotImplementedError

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return (B, K) class scores of embeddings (B, E), without a margin; the largest is the predicted class."""
        return self.cosines(embeddings)

    def logits_and_scores(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` and, without gradient, `scores` return; the built-in heads share one product."""
        logits = self(embeddings, labels)
        with torch.no_grad():
            return logits, self.scores(embeddings)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the (B, K) cosines between embeddings (B, E) and class centers."""
        return center_cosines(embeddings.to(self.kernel.dtype), self.kernel)

    def target_cosines(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the (B,) cosines between embeddings (B, E) and the centers of their own classes.

        Only these centers are read; the cosines equal those of `cosines` up to rounding.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return paired_cosines(embeddings, self.kernel[:, labels].t())

    def statistics(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """Return (num_statistics,) sums over these images, which are summed over the global batch for `observe`.

        Args:
            embeddings: (B, E).
            target: (B,), cosine of the target class of each image.
        """
        return embeddings.new_zeros(self.num_statistics)

    def observe(self, sums: Tensor, count: int) -> None:
        """Update the state of the head from the sums over the `count` images of the global batch."""

    def extra_losses(self, embeddings: Tensor) -> Tensor | None:
        """Return (B,) terms that are added to the cross-entropy of each image, or None."""
        return None


class ScaleConfig(PluginConfig):
    """The setting that all heads with a margin share."""

    scale: float = affects_result(64.0, "s, factor of all logits", gt=0)


class MarginHead(Head):
    """Base class of heads with a margin: logits s * changed(cos).

    Args:
        scale: s, factor of all logits.
        margin: m, in radians or as a cosine, depending on the subclass.
    """

    def __init__(self, scale: float, margin: float = 0.0) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, K), of embeddings (B, E) not normalized and labels (B,) in [0, K)."""
        return self._logits_and_cosines(embeddings, labels)[0]

    def logits_and_scores(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Head`; the scores are the cosines that the logits were computed from."""
        if self.overrides("forward", "scores"):  # a plugin
            return super().logits_and_scores(embeddings, labels)
        logits, cosines = self._logits_and_cosines(embeddings, labels)
        return logits, cosines.detach()

    def overrides(self, *methods: str) -> bool:
        """Return True if the subclass replaces one of these methods of `MarginHead`."""
        return any(getattr(type(self), method) is not getattr(MarginHead, method) for method in methods)

    def _logits_and_cosines(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.kernel.dtype)
            cosines = self.cosines(embeddings)                                # (B, K)
            target = cosines.gather(1, labels[:, None])                       # (B, 1)
            is_target = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, labels[:, None], True)
            return self.logits(cosines, target, is_target, embeddings), cosines

    def logits(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        """Return the (B, K) logits of the cosines; arguments as of `_apply_margin`."""
        return self.scale * self._apply_margin(cosines, target, is_target, embeddings)

    def _apply_margin(self, cosines: Tensor, target: Tensor, is_target: Tensor, embeddings: Tensor) -> Tensor:
        """Return the (B, K) cosines with margin; most heads change only the cosine of the target class.

        Args:
            cosines: (B, K); K may be a part of the classes, for example those that one process holds.
            target: (B, 1), cosine of the target class of each image, which need not be among the K.
            is_target: (B, K) bool.
            embeddings: (B, E), for margins that depend on their norm.
        """
        return torch.where(is_target, self.changed_target(target, embeddings), cosines)

    def changed_target(self, target: Tensor, embeddings: Tensor) -> Tensor:
        """Return the replacement (B, 1) of the cosine of the target class; arguments as of `_apply_margin`."""
        raise NotImplementedError


def angular_target(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """Return cos(theta + m) up to theta + m = pi, and cos(theta) - m sin(pi - m) beyond, which keeps decreasing.

    Args:
        cosine: cos(theta), (B, 1).
        margin: m in radians, 0 <= m < pi / 2: a scalar or (B, 1).
    """
    if isinstance(margin, Tensor):
        is_inside, step = cosine > (math.pi - margin).cos(), (math.pi - margin).sin() * margin
    else:
        is_inside, step = cosine > math.cos(math.pi - margin), math.sin(math.pi - margin) * margin
    return torch.where(is_inside, cos_of_sum(cosine, margin), cosine - step)


def cos_of_sum(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """Return cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m); m is a scalar or (B, 1)."""
    # Differs from TFace: the derivative of sin(theta) is taken as 0 where cos(theta) is exactly +-1; the
    # published form gives inf or NaN there, also from the branch that is not selected. Equal elsewhere.
    squared_sine = 1 - cosine * cosine
    is_regular = squared_sine > 0
    sine = torch.where(is_regular, torch.where(is_regular, squared_sine, 1.0).sqrt(), 0.0)
    if isinstance(margin, Tensor):
        return cosine * margin.cos() - sine * margin.sin()
    return cosine * math.cos(margin) - sine * math.sin(margin)


def build_head(cfg: PluginConfig) -> Head:
    """Build the head with the name and settings of `cfg`, still without classes.

    Raises:
        UserError: Its builder did not return a `Head`.
    """
    head = registry.build("head", cfg)
    if not isinstance(head, Head):
        raise UserError(f"head plugin {cfg.name!r} built a {type(head).__name__}; a subclass of {Head.__module__}.Head "
                        "was expected")
    return head
