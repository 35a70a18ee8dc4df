"""How the network's outputs with and without the context are combined at each step.

Classifier-free guidance: Ho & Salimans 2022, arXiv:2207.12598,

    eps = eps_neg + s (eps_pos - eps_neg)

with eps_pos under the context and eps_neg under the empty one. s = 1 is the plain conditional model.
Papers that write eps = (1 + w) eps_pos - w eps_neg (NegFaceDiff, AdaptDiff, UIFace) mean s = 1 + w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pydantic import model_validator
from torch import Tensor

from facesyn_cli.config.fields import identity
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class Guidance(Protocol):
    """Predicts the noise of one step from one or more network evaluations."""

    def evaluations(self, index: int, num_steps: int) -> int:
        """Return how often step `index` of `num_steps` evaluates the network."""

    def predict(
        self, positive: Callable[[], Tensor], negative: Callable[[], Tensor], index: int, num_steps: int
    ) -> Tensor:
        """Return eps (B, C, H, W) of step `index`.

        Args:
            positive: Evaluates the network under the contexts.
            negative: Evaluates it under the empty context.
        """


class NoGuidanceConfig(PluginConfig):
    """Settings of `none`: it has none."""


class CfgConfig(PluginConfig):
    """Settings of `cfg`."""

    scale: float = identity(1.5, "s; 1 is off and costs one evaluation per step", ge=0)
    start: float = identity(0.0, "share of the steps after which guidance begins", ge=0, le=1)
    end: float = identity(1.0, "share of the steps after which guidance ends", ge=0, le=1)

    @model_validator(mode="after")
    def _interval_is_not_empty(self) -> CfgConfig:
        if self.start >= self.end:
            raise ValueError(f"guidance.start ({self.start}) must be below guidance.end ({self.end})")
        return self


@register("guidance", "none", Card("the conditional model alone"))
def build_none(cfg: NoGuidanceConfig) -> Guidance:
    """Return the conditional model alone."""
    return _Unguided()


@register(
    "guidance",
    "cfg",
    Card(
        "classifier-free guidance against the empty context; wants an LDM trained with whole-context dropout",
        "Ho & Salimans 2022, arXiv:2207.12598",
    ),
)
def build_cfg(cfg: CfgConfig) -> Guidance:
    """Return classifier-free guidance, limited to an interval of the steps where one is set."""
    return _Unguided() if cfg.scale == 1 else _ClassifierFree(cfg)


class _Unguided:
    def evaluations(self, index: int, num_steps: int) -> int:
        return 1

    def predict(
        self, positive: Callable[[], Tensor], negative: Callable[[], Tensor], index: int, num_steps: int
    ) -> Tensor:
        return positive()


class _ClassifierFree:
    """Two passes of B rather than one of 2 B: the same numbers as unguided, and no more memory."""

    def __init__(self, cfg: CfgConfig) -> None:
        self._cfg = cfg

    def evaluations(self, index: int, num_steps: int) -> int:
        return 2 if self._is_guided(index, num_steps) else 1

    def predict(
        self, positive: Callable[[], Tensor], negative: Callable[[], Tensor], index: int, num_steps: int
    ) -> Tensor:
        eps_pos = positive()
        if not self._is_guided(index, num_steps):
            return eps_pos
        eps_neg = negative()
        return eps_neg + self._cfg.scale * (eps_pos - eps_neg)

    def _is_guided(self, index: int, num_steps: int) -> bool:
        return self._cfg.start <= index / num_steps < self._cfg.end
