"""The variation `idperturb` (IDPERTURB, arXiv:2602.18831): draw each context from a cone around the identity's.

    s ~ U[b, 1],   theta = arccos s,   v' = cos(theta) v + sin(theta) u

with u a random unit vector orthogonal to v. The collision bound raises b of each identity to

    b = max(lb, max_j cos(angle(v, v_j) / 2)),

half the angle to the nearest other identity, so the cones of two identities do not overlap.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.config.fields import affects_result
from facesyn_cli.contexts.variation import ContextVariation
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig

_ROUNDING = 1e-5  # error bound of cosines in float32


class IdperturbConfig(PluginConfig):
    """Settings of `idperturb`."""

    lowest: float = affects_result(0.6, "lb: the lowest cosine of an image's context to its identity's", gt=-1, le=1)
    avoid_collisions: bool = affects_result(True, "keep every cone within half the angle to the nearest other identity")


@register(
    "context_variation",
    "idperturb",
    Card(
        about="Draw each image's context from a cone around its identity's; cones of two identities do not overlap.",
        paper="IDPERTURB, arXiv:2602.18831",
    ),
)
class Idperturb(ContextVariation):
    """Contexts uniform in their cosine to the identity's."""

    def __init__(self, cfg: IdperturbConfig) -> None:
        self._cfg = cfg
        self.needs_all_contexts = cfg.avoid_collisions
        self._bounds: dict[int, float] = {}
        self._lock = threading.Lock()

    def open(self, vectors: np.ndarray, identities: list[str], seed: int) -> dict[str, Parent]:
        """Take the contexts; see `ContextVariation.open`."""
        self._bounds.clear()
        return super().open(vectors, identities, seed)

    def context(self, row: int, sample: int) -> np.ndarray:
        """Return a context from the cone of identity `row`; see `ContextVariation.context`."""
        random = keyed_random("idperturb", self.seed, self.identities[row], sample)
        lowest = self.lowest(row)
        cosine = lowest + (1 - lowest) * random.random_sample()
        v = self.vectors[row].astype(np.float64)
        v /= np.linalg.norm(v)
        u = random.standard_normal(len(v))
        u -= (u @ v) * v
        u /= np.linalg.norm(u)
        return (cosine * v + math.sqrt(1 - cosine**2) * u).astype(np.float32)

    def lowest(self, row: int) -> float:
        """Return b, the lowest cosine that an image of identity `row` may have to its context."""
        if not self._cfg.avoid_collisions:
            return self._cfg.lowest
        with self._lock:
            bound = self._bounds.get(row)
        if bound is None:
            bound = math.sqrt((1 + self._nearest_cosine(row)) / 2)         # cos(angle / 2)
            with self._lock:
                self._bounds[row] = bound
        return max(self._cfg.lowest, bound)

    def _nearest_cosine(self, row: int) -> float:
        """Return the highest cosine to another identity, the same bits on any number of cores."""
        rough = self.vectors @ self.vectors[row]                           # (N,), last bits depend on cores
        rough[row] = -2
        near = self.vectors[rough > rough.max() - _ROUNDING].astype(np.float64)
        cosines = (near * self.vectors[row]).sum(axis=1)
        return min(max(float(cosines.max()), -1.0), 1.0)
