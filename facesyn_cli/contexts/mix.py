"""The context source `mix`: mixtures of the embeddings of two known people.

AugGen (2025, arXiv:2503.11544) conditions a generator of real people on c* = a c_i + b c_j of two of them; what is
drawn is a person between both and is used as a new class beside the real ones. Here of unit centers of embeddings, of
which only the direction counts:

    c = (w c_i + (1 - w) c_j) / |...|

i is uniform over the known people, j random, or the nearest or farthest of `candidates` random others. A mixture of
equal weights has a cosine of sqrt((1 + cos(c_i, c_j)) / 2) to both, 0.7 for strangers: it resembles two real people.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from facesyn_cli.config.fields import affects_result
from facesyn_cli.contexts.endless import BLOCK, KnownDirections
from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class MixConfig(PluginConfig):
    """Settings of the source `mix`; the people are those of `known`."""

    weight: float = affects_result(0.5, "w, weight of the first person; the second has 1 - w", gt=0, lt=1)
    pair: Literal["random", "close", "far"] = affects_result("random", "whom the first person is mixed with")
    candidates: int = affects_result(64, "random others, of whom `close` and `far` take the one", ge=1)


@register(
    "contexts",
    "mix",
    Card(
        about="Mixtures of two people of the EmbeddingSet `known`, to go beside their photos; has no faces.",
        paper="AugGen, arXiv:2503.11544",
    ),
)
class Mix(KnownDirections):
    """Endless mixtures."""

    def __init__(self, cfg: MixConfig) -> None:
        self._cfg = cfg

    def open(self, resources: Resources) -> None:
        """Take the centers of the known people; embeddings without names are of one person each.

        Raises:
            UserError: There are fewer than two.
        """
        super().open(resources)
        known = resources.known.astype(np.float64)
        owner = np.unique(resources.known_people or np.arange(len(known)), return_inverse=True)[1]
        sums = np.zeros((int(owner.max(initial=-1)) + 1, known.shape[1]))
        np.add.at(sums, owner, known)
        if len(sums) < 2:
            raise UserError(f"source mix: the known embeddings show {len(sums)} people, at least 2 are needed")
        self._centers = sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def block(self, number: int) -> np.ndarray:
        """Return the mixtures of one block."""
        first, second = self._pairs(keyed_random("mix", self.resources.seed, self.digest, number))
        return self._cfg.weight * self._centers[first] + (1 - self._cfg.weight) * self._centers[second]

    def _pairs(self, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Return the two people of each candidate of a block, (BLOCK,) each."""
        people = len(self._centers)
        first = random.randint(people, size=BLOCK)
        count = 1 if self._cfg.pair == "random" else self._cfg.candidates
        others = random.randint(people - 1, size=(BLOCK, count))
        others += others >= first[:, None]                                       # everybody but the first person
        cosines = np.stack([self._centers[row] @ self._centers[a] for a, row in zip(first, others, strict=True)])
        chosen = cosines.argmin(axis=1) if self._cfg.pair == "far" else cosines.argmax(axis=1)
        return first, others[np.arange(BLOCK), chosen]
