"""The guidance `scoremix`: an image under two identities at once, which shows a person between both.

ScoreMix (ICML 2026) makes a new class from the scores of two classes, mixed at every step,

    out = m pos + (1 - m) other

with pos the output under the context of the identity and other that under the context of its partner; the same for
eps, v, x0 and the velocity of a flow. The published m is 0.5, with partners that are far away for a recognizer; close
ones cost 2.5 points of accuracy, and three classes are worse than two. Two evaluations per step.

Every identity has one partner for all of its images, the nearest or farthest of `candidates` random others, or a random
one. No two identities have the same pair: with equal weights (i, j) and (j, i) are one person.

The person is neither of the two, so images must not be compared with the context of the identity, nor its face be added
to them: `sample` and `augment` refuse that.
"""

# Differs from ScoreMix: partners are contexts and are chosen by the cosine of contexts, there classes by that of their
# centers for a recognizer. The code is not released; facts are those of the project page.

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.config.fields import affects_result, input_path
from facesyn_cli.diffusion.guidance import Guidance, LinearGuidance
from facesyn_cli.diffusion.guidance_negative import SAME
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class ScoremixConfig(PluginConfig):
    """Settings of `scoremix`."""

    weight: float = affects_result(0.5, "m, weight of the identity; its partner has 1 - m", gt=0, lt=1)
    partner: Literal["far", "close", "random"] = affects_result("far", "whom an identity is mixed with")
    candidates: int = affects_result(64, "random others, of whom `far` and `close` take the one", ge=1)
    contexts: Path | None = input_path(
        None, "ContextSet or .npy of partners; None: the contexts that are sampled"
    )


@register(
    "guidance", "scoremix",
    Card("mixes the outputs under two identities: a person between both; two evaluations per step",
         "ScoreMix, ICML 2026"),
)
def build_scoremix(cfg: ScoremixConfig) -> Guidance:
    """Return guidance that mixes with a fixed weight."""
    return LinearGuidance(lambda step: cfg.weight, Partners(cfg.partner, cfg.candidates))


class Partners:
    """The rule by which each identity gets a partner.

    Args:
        choice: far, close or random.
        candidates: Random others of whom far and close take the one.
    """

    def __init__(self, choice: str, candidates: int) -> None:
        self._count = 1 if choice == "random" else candidates
        self._sign = -1 if choice == "far" else 1

    def choose(self, identities: list[str], vectors: np.ndarray, pool: np.ndarray, seed: int) -> np.ndarray:
        """Return the row of each identity's partner in the pool, (N,).

        The partner of an identity depends on the identities before it, not on those behind it.

        Args:
            identities: N names.
            vectors: (N, E) float32 unit contexts.
            pool: (M, E) float32 unit contexts.
            seed: Seed of the candidates.

        Raises:
            UserError: An identity has no possible partner: the pool holds its own context alone, or only contexts of
                identities whose partner it is.
        """
        rows = np.empty(len(identities), dtype=np.int64)
        taken: set[frozenset[bytes]] = set()
        for number, (identity, own) in enumerate(zip(identities, vectors, strict=True)):
            drawn = keyed_random("partner", seed, identity).randint(len(pool), size=self._count)
            for candidates in (drawn, np.arange(len(pool))):
                cosines = pool[candidates] @ own
                order = candidates[np.argsort(-self._sign * cosines, kind="stable")]
                found = next((row for row in order
                              if pool[row] @ own < SAME and _pair(own, pool[row]) not in taken), None)
                if found is not None:
                    break
            else:
                raise UserError(f"guidance scoremix: there is nobody to mix identity {identity!r} with among "
                                f"{len(pool)} contexts; give more with guidance.contexts")
            rows[number] = found
            taken.add(_pair(own, pool[found]))
        return rows


class PartnerContexts:
    """The context of each identity's partner.

    Args:
        identities: N names.
        partners: (N, E) float32 unit contexts.
    """

    def __init__(self, identities: list[str], partners: np.ndarray) -> None:
        self._partner_of = dict(zip(identities, torch.from_numpy(partners), strict=True))

    def context(self, own: Tensor, identity: str, sample: int) -> Tensor:
        """Return the context (E,) of an image's partner, the same for all images of the identity."""
        return self._partner_of[identity]


def _pair(first: np.ndarray, second: np.ndarray) -> frozenset[bytes]:
    return frozenset((first.tobytes(), second.tobytes()))
