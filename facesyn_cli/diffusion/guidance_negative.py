"""Guidance away from other identities.

    out = (1 + w) pos - w neg = neg + s (pos - neg),    s = 1 + w

* NegFaceDiff, arXiv:2508.09661: neg is the output under the context of another identity, w = 0.5 throughout.
* AdaptDiff, arXiv:2603.29569: w(t) = w (1 - t / T), so guidance starts at 0 for pure noise. Its code also has the
  reverse, w(t) = w t / T, which the paper does not describe: `reverse=true`.

The negative identity is chosen by the cosine of its context to that of the image: "close" is read as the highest
cosine, "far" as the lowest and "mid" as the middle rank. Works with any conditional LDM; one trained with whole-context
dropout is needed only for the empty context as negative.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.diffusion.guidance import Guidance, LinearGuidance
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

CHOICES = ("close", "mid", "far", "random")
SAME = 1 - 1e-5  # cosine above which two contexts are the same


class NegativeConfig(PluginConfig):
    """Settings of `negfacediff` and what `adaptdiff` shares with it."""

    scale: float = affects_result(1.5, "s = 1 + w of the paper; 1 is off", ge=1)
    negative: Literal["empty", "close", "mid", "far", "random"] = affects_result(
        "close", "context to guide away from: the empty one, or an identity chosen by its cosine"
    )
    contexts: Path | None = input_path(
        None, "ContextSet or .npy of negative contexts; None: the contexts that are sampled"
    )


class AdaptiveConfig(NegativeConfig):
    """Settings of `adaptdiff`."""

    scale: float = affects_result(2.0, "s = 1 + w where the guidance is strongest; 1 is off", ge=1)
    reverse: bool = affects_result(False, "strongest at pure noise and 0 at the image, as released beside the paper's")


@register(
    "guidance", "negfacediff",
    Card("guidance away from another identity (close, mid, far, random) or the empty context; two evaluations per step",
         "NegFaceDiff, arXiv:2508.09661"),
)
def build_negfacediff(cfg: NegativeConfig) -> Guidance:
    """Return guidance with a fixed scale."""
    return LinearGuidance(lambda step: cfg.scale, _negatives(cfg))


@register(
    "guidance", "adaptdiff",
    Card("as negfacediff, with a strength that increases from 0 at pure noise to its full value at the image",
         "AdaptDiff, arXiv:2603.29569"),
)
def build_adaptdiff(cfg: AdaptiveConfig) -> Guidance:
    """Return guidance with a w that increases as the noise decreases."""
    return LinearGuidance(
        lambda step: 1 + (cfg.scale - 1) * (step.time if cfg.reverse else 1 - step.time), _negatives(cfg)
    )


def _negatives(cfg: NegativeConfig) -> str | None:
    return None if cfg.negative == "empty" else cfg.negative


class NegativeContexts:
    """Chooses the negative context of each image; thread-safe.

    A row that equals the context of the image is never chosen.

    Args:
        pool: (M, E) float32 contexts of unit length.
        choice: One of `CHOICES`.
        seed: Seed of `random`.

    Raises:
        UserError: The pool holds fewer than two contexts.
    """

    def __init__(self, pool: np.ndarray, choice: str, seed: int) -> None:
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {CHOICES}, got {choice!r}")
        if len(pool) < 2:
            raise UserError(f"guidance away from other identities needs 2 or more contexts, there is {len(pool)}")
        self._pool, self._choice, self._seed = pool, choice, seed
        self._row_of: dict[str, int] = {}

    def context(self, own: Tensor, identity: str, sample: int) -> Tensor:
        """Return the negative context (E,) of an image.

        Args:
            own: (E,) unit context of the image's identity.
            identity: Name of the identity.
            sample: Number of the image; used by `random` only.

        Raises:
            UserError: The pool holds only the context of the identity itself.
        """
        if self._choice == "random":
            return torch.from_numpy(self._pool[self._random_row(own.numpy(), identity, sample)])
        if identity not in self._row_of:  # two threads may compute the same row
            self._row_of[identity] = self._ranked_row(own.numpy(), identity)
        return torch.from_numpy(self._pool[self._row_of[identity]])

    def _ranked_row(self, own: np.ndarray, identity: str) -> int:
        cosines = self._pool @ own                                         # (M,)
        others = np.flatnonzero(cosines < SAME)
        if not len(others):
            raise UserError(f"the contexts to guide away from hold nothing but the context of identity {identity!r}")
        order = others[np.argsort(-cosines[others], kind="stable")]        # closest first
        return int(order[{"close": 0, "mid": (len(order) - 1) // 2, "far": -1}[self._choice]])

    def _random_row(self, own: np.ndarray, identity: str, sample: int) -> int:
        random = keyed_random("negative", self._seed, identity, sample)
        for _ in range(100):
            row = int(random.randint(len(self._pool)))
            if self._pool[row] @ own < SAME:
                return row
        raise UserError(f"the contexts to guide away from hold hardly anything but the context of {identity!r}")
