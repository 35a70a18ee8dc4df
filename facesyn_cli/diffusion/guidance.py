"""Guidance: combination of the denoiser outputs under several contexts at each step.

Classifier-free guidance: Ho & Salimans 2022, arXiv:2207.12598,

    out = neg + s (pos - neg)

with pos the output under the context and neg the output under the empty context; s = 1 is the conditional model without
guidance. (1 + w) pos - w neg (NegFaceDiff, AdaptDiff, UIFace) is s = 1 + w. The formula is the same for eps, v and x0,
which are linear in each other, and for the velocity of a flow: the weights 1 - s and s add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import model_validator
from torch import Tensor

from facesyn_cli.config.fields import affects_result
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

if TYPE_CHECKING:
    from facesyn_cli.diffusion.guidance_scoremix import Partners


@dataclass(frozen=True)
class Step:
    """One evaluation of a sampler.

    Args:
        index: Number of the step, from 0. Where a solver evaluates one time twice, as `flow-heun` does, both
            evaluations have one number, so guidance depends on the time alone.
        num_steps: Number of steps.
        time: t / T in [0, 1], decreasing from 1 or nearly 1 (noise) to 0 (image); t of a flow.
    """

    index: int
    num_steps: int
    time: float


class Network(Protocol):
    """The denoiser at one step of a batch."""

    def __call__(self, context: Any) -> Tensor:
        """Return the output (B, C, H, W) under the encoded contexts of the batch."""

    def pair(self, first: Any, second: Any) -> tuple[Tensor, Tensor]:
        """Return the outputs under two contexts of each image, in one pass if the denoiser supports it."""

    def with_early(self, context: Any) -> tuple[Tensor, Tensor]:
        """Return the output, and the early one of a denoiser that has it, from one pass."""


Predict = Callable[[Network, Step], Tensor]  # result of `Guidance.begin`


class Guidance(Protocol):
    """Combines one or more network evaluations of a step into one output."""

    negatives: str | Partners | None  # choice of `NegativeContexts` (`guidance_negative.py`), or of partners
    # (`guidance_scoremix.py`); None: the empty context
    needs_attention: bool  # needs contexts that record and inject attention maps
    needs_early_output: bool = False  # calls `Network.with_early`

    def evaluations(self, step: Step) -> int:
        """Return the number of network evaluations of a step."""

    def begin(self, positive: Any, negative: Any) -> Predict:
        """Return the function that predicts the output of each step of one batch.

        Args:
            positive: Encoded contexts of the identities of the batch.
            negative: Encoded contexts to guide away from, or to mix with: of other identities, or empty ones. None if
                every step evaluates the network once.

        Returns:
            (network, step) -> output (B, C, H, W); called once per step, in order.
        """


class NoGuidanceConfig(PluginConfig):
    """Settings of `none`."""


class CfgConfig(PluginConfig):
    """Settings of `cfg`."""

    scale: float = affects_result(1.5, "s; 1 is off, with one evaluation per step", ge=0)
    start: float = affects_result(0.0, "fraction of the steps after which guidance starts", ge=0, le=1)
    end: float = affects_result(1.0, "fraction of the steps after which guidance ends", ge=0, le=1)

    @model_validator(mode="after")
    def _interval_is_not_empty(self) -> CfgConfig:
        if self.start >= self.end:
            raise ValueError(f"guidance.start ({self.start}) must be below guidance.end ({self.end})")
        return self

    def scale_at(self, step: Step) -> float:
        """Return s of a step, which is 1 outside of the interval."""
        return self.scale if self.start <= step.index / step.num_steps < self.end else 1.0


@register("guidance", "none", Card("the conditional model without guidance"))
def build_none(cfg: NoGuidanceConfig) -> Guidance:
    """Return the conditional model without guidance."""
    return LinearGuidance(lambda step: 1.0)


@register(
    "guidance", "cfg",
    Card("classifier-free guidance against the empty context; needs an LDM trained with whole-context dropout",
         "Ho & Salimans 2022, arXiv:2207.12598; limited to an interval: arXiv:2506.08351"),
)
def build_cfg(cfg: CfgConfig) -> Guidance:
    """Return classifier-free guidance, optionally limited to an interval of the steps."""
    return LinearGuidance(cfg.scale_at)


class LinearGuidance:
    """out = neg + s (pos - neg) with a scale s per step; with s = 1, neg is not evaluated.

    Args:
        scale: Step -> s.
        negatives: See `Guidance`.
    """

    needs_attention = False

    def __init__(self, scale: Callable[[Step], float], negatives: str | Partners | None = None) -> None:
        self.negatives = negatives
        self._scale = scale

    def evaluations(self, step: Step) -> int:
        """Return 1, or 2 where the step is guided."""
        return 1 if self._scale(step) == 1 else 2

    def begin(self, positive: Any, negative: Any) -> Predict:
        """Return the function that combines the two outputs; see `Guidance.begin`."""

        def predict(network: Network, step: Step) -> Tensor:
            scale = self._scale(step)
            if scale == 1:
                return network(positive)
            output, away = network.pair(positive, negative)
            return away + scale * (output - away)

        return predict
