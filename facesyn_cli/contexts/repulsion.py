"""The context source `repulsion`: people packed into the gaps between real people, inside their distribution.

Drawing at random and dropping who is too near to somebody (`pca` with `unique` and `novel`) drops most candidates where
many people are wanted. Here a fixed number of people is drawn from the distribution of `pca` and then pushed apart
until none is too near. Real identities lie in a low-dimensional part of embedding space, and new ones belong into its
gaps: BIP, arXiv:2605.18238. With the mean m, principal directions V and standard deviations s of known embeddings,

    c_i = (m + V (s * z_i)) / |...|,   z_i ~ N(0, I) at first
    E = sum_i e_i,   e_i = sum_{j != i} max(0, cos(c_i, c_j) - r)^2 + sum_k max(0, cos(c_i, f_k) - novel)^2

with f_k the known embeddings. Each step moves z_i against its gradient g_i of e_i by the step of Polyak (1987),
e_i / |g_i|^2, and keeps the length of z_i, so that nobody leaves the shell that typical people lie on.
"""

# Differs from BIP, of which only the abstract was read: the energy is zero from the thresholds on, so people move no
# farther than they must.

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from facesyn_cli import signals
from facesyn_cli.config.fields import affects_result
from facesyn_cli.console import log
from facesyn_cli.contexts.pca import Pca, PcaConfig
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.progress import progress

_MARGIN = 2e-3      # below the thresholds, which the steps aim at
_BLOCK = 256        # people whose cosines to all others are in memory at once
_TINY = 1e-30       # least squared length of a gradient


class RepulsionConfig(PcaConfig):
    """Settings of the source `repulsion`; the embeddings are `known`."""

    people: int = affects_result(1000, "people to pack; other numbers give other people", ge=1)
    r: float = affects_result(0.3, "cosine that any two of them stay below", gt=-1, le=1)
    novel: float | None = affects_result(
        0.3, "cosine to every known embedding that they stay below; None: known ones do not push", gt=-1, le=1
    )
    steps: int = affects_result(300, "steps after which a packing that does not fit is given up", ge=1)


@register(
    "contexts",
    "repulsion",
    Card(
        about="People distributed like the EmbeddingSet `known`, pushed apart until none is near another or a known "
        "person; has no faces.",
        paper="idea: BIP, arXiv:2605.18238",
    ),
)
class Repulsion(Pca):
    """A packing of `people` directions, made when the first one is needed."""

    def __init__(self, cfg: RepulsionConfig) -> None:
        super().__init__(cfg)
        self._repulsion, self._lock = cfg, threading.Lock()
        self._packed: np.ndarray | None = None

    def open(self, resources: Resources) -> None:
        """Fit the distribution; see `Pca.open`."""
        super().open(resources)
        self.num_candidates = self._repulsion.people

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield the packed people.

        Raises:
            UserError: They do not fit.
        """
        with self._lock:  # threads ask for batches at once
            if self._packed is None:
                self._packed = self._pack().astype(np.float32)
        for first in range(start, len(self._packed), self.resources.batch_size):
            some = self._packed[first : first + self.resources.batch_size]
            origins = [{"candidate": k} for k in range(first, first + len(some))]
            yield CandidateBatch(first, first + len(some), some, origins, [None] * len(some))

    def _pack(self) -> np.ndarray:
        cfg, seed = self._repulsion, self.resources.seed
        fits, size = self.fitted(), self.resources.known.shape[1]
        normal = cfg.scale * keyed_random("repulsion", seed, self.digest).standard_normal((cfg.people, size))
        group = keyed_random("repulsion-group", seed, self.digest).randint(len(fits), size=cfg.people)
        # noise of the embedding space, so that the signs of the principal directions do not matter
        points = [_Points(mean, axes * spread, np.flatnonzero(group == number), normal[group == number] @ axes)
                  for number, (mean, axes, spread) in enumerate(fits)]
        known = self.resources.known.astype(np.float64)[: None if cfg.novel is not None else 0]
        with progress("repulsion", cfg.steps, "steps") as bar:
            for step in range(cfg.steps + 1):
                signals.check()
                vectors = np.empty((cfg.people, size))
                for some in points:
                    vectors[some.rows] = some.vectors()
                pressure = _pressure(vectors, known, cfg.r, 1.0 if cfg.novel is None else cfg.novel)
                if not (pressure.near_pairs or pressure.near_known):
                    log.info(f"source repulsion: {cfg.people:,} people packed in {step} steps")
                    return vectors
                if step < cfg.steps:
                    for some in points:
                        some.move(pressure.energy[some.rows], pressure.gradient[some.rows])
                    bar.advance(1, near_pairs=pressure.near_pairs, near_known=pressure.near_known)
        raise UserError(
            f"source repulsion: {cfg.people:,} people do not fit: after {cfg.steps} steps {pressure.near_pairs:,} "
            f"pairs are at r={cfg.r} or above (the highest at {pressure.highest:.3f}), and {pressure.near_known:,} "
            f"people at novel={cfg.novel} or above to a known one; raise source.r or source.novel, or lower "
            "source.people"
        )


@dataclass
class _Points:
    """People of one group.

    Args:
        mean: (E,).
        factor: (E, K) principal directions times standard deviations.
        rows: (n,) their numbers.
        z: (n, K) their coordinates.
    """

    mean: np.ndarray
    factor: np.ndarray
    rows: np.ndarray
    z: np.ndarray

    def vectors(self) -> np.ndarray:
        """Return unit vectors, (n, E)."""
        sums = self._sums()
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def move(self, energy: np.ndarray, gradient: np.ndarray) -> None:
        """Take a step against the gradient (n, E) of energies (n,) with respect to unit vectors."""
        lengths = np.linalg.norm(self._sums(), axis=1, keepdims=True)
        own = self.vectors()
        tangent = (gradient - (gradient * own).sum(axis=1, keepdims=True) * own) / lengths
        slope = tangent @ self.factor                                                     # (n, K)
        size = energy / np.maximum((slope**2).sum(axis=1), _TINY)
        before = np.linalg.norm(self.z, axis=1, keepdims=True)
        moved = self.z - size[:, None] * slope
        self.z = moved * (before / np.linalg.norm(moved, axis=1, keepdims=True))

    def _sums(self) -> np.ndarray:
        return self.mean + self.z @ self.factor.T


@dataclass(frozen=True)
class _Pressure:
    """What pushes N people.

    Args:
        energy: (N,) e_i.
        gradient: (N, E) of e_i with respect to c_i.
        near_pairs: Pairs that are too near.
        near_known: People who are too near to a known one.
        highest: Highest cosine of two of them; -1 for one person alone.
    """

    energy: np.ndarray
    gradient: np.ndarray
    near_pairs: int
    near_known: int
    highest: float


def _pressure(vectors: np.ndarray, known: np.ndarray, r: float, novel: float) -> _Pressure:
    """Return the energies and gradients of unit vectors (N, E) among known ones (M, E)."""
    energy, gradient = np.empty(len(vectors)), np.empty_like(vectors)
    near_pairs, near_known, highest = 0, 0, -1.0
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        among = vectors[rows] @ vectors.T
        among[np.arange(len(among)), np.arange(start, start + len(among))] = -1.0        # nobody pushes themselves
        outside = vectors[rows] @ known.T
        near_pairs += int((among >= r - _MARGIN / 2).sum())
        near_known += int((outside >= novel - _MARGIN / 2).any(axis=1).sum())
        highest = max(highest, float(among.max()))
        among, outside = np.maximum(among - (r - _MARGIN), 0), np.maximum(outside - (novel - _MARGIN), 0)
        energy[rows] = (among**2).sum(axis=1) + (outside**2).sum(axis=1)
        gradient[rows] = 2 * (among @ vectors + outside @ known)
    return _Pressure(energy, gradient, near_pairs // 2, near_known, highest)
