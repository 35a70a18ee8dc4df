"""The context source `repulsion`: people packed into the gaps between real people, inside their distribution.

Drawing at random and dropping who is too near to somebody (`pca` with `unique` and `novel`) drops most candidates where
many people are wanted. Here people are drawn from the distribution of `pca`, and then pushed apart until none is too
near. Real identities lie in a low-dimensional part of embedding space, and new ones belong into its gaps: BIP,
arXiv:2605.18238. With the mean m, principal directions V and standard deviations s of known embeddings,

    c_i = (m + V (s * z_i)) / |...|,   z_i ~ N(0, I) at first
    E = sum_i e_i,   e_i = sum_{j != i} max(0, cos(c_i, c_j) - r)^2 + sum_k max(0, cos(c_i, f_k) - novel)^2

with f_k the known embeddings. Each step moves z_i against its gradient g_i of e_i by the step of Polyak (1987),
e_i / |g_i|^2, and keeps the length of z_i, so that nobody leaves the shell that typical people lie on.

`together` people are pushed at a time; those before them stay where they are and push too. So the source has no end
before it is full, and a longer run begins with the people of a shorter one.
"""

# Differs from BIP, of which only the abstract was read: the energy is zero from the thresholds on, so people move no
# farther than they must.

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from facesyn_cli import signals
from facesyn_cli.config.fields import affects_result
from facesyn_cli.console import log
from facesyn_cli.contexts.endless import BLOCK
from facesyn_cli.contexts.pca import Pca, PcaConfig
from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.progress import progress

_MARGIN = 2e-3      # below the thresholds, which the steps aim at
_ROWS = 256         # people whose cosines to all others are in memory at once
_TINY = 1e-30       # least squared length of a gradient


class RepulsionConfig(PcaConfig):
    """Settings of the source `repulsion`; the embeddings are `known`."""

    r: float = affects_result(0.3, "cosine that any two people stay below", gt=-1, le=1)
    novel: float | None = affects_result(
        0.3, "cosine to every known embedding that they stay below; None: known ones do not push", gt=-1, le=1
    )
    together: int = affects_result(BLOCK, "people who are pushed at a time; fewer move less", ge=1, le=BLOCK)
    steps: int = affects_result(300, "steps after which people who do not fit are given up", ge=1)


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
    """Endless directions, packed block by block."""

    def __init__(self, cfg: RepulsionConfig) -> None:
        super().__init__(cfg)
        self._repulsion, self._lock, self.block_size = cfg, threading.Lock(), cfg.together
        self._packed: list[np.ndarray] = []  # (together, E) of each block

    def open(self, resources: Resources) -> None:
        """Fit the distribution; see `Pca.open`."""
        super().open(resources)
        self._packed = []

    def block(self, number: int) -> np.ndarray:
        """Return the people of one block.

        Raises:
            UserError: They do not fit, or those of an earlier block.
        """
        with self._lock:  # threads ask for blocks at once
            while len(self._packed) <= number:
                self._packed.append(self._pack(len(self._packed)))
            return self._packed[number]

    def _pack(self, number: int) -> np.ndarray:
        """Return the people of one block, (together, E)."""
        cfg, seed, size = self._repulsion, self.resources.seed, self.resources.known.shape[1]
        random = keyed_random("repulsion", seed, self.digest, number)
        normal = cfg.scale * random.standard_normal((cfg.together, size))
        group = random.randint(len(self.fits), size=cfg.together)
        # noise of the embedding space, so that the signs of the principal directions do not matter
        points = [_Points(mean, axes * spread, np.flatnonzero(group == k), normal[group == k] @ axes)
                  for k, (mean, axes, spread) in enumerate(self.fits)]
        fixed = [(people, cfg.r) for people in self._packed]
        if cfg.novel is not None:
            fixed.append((self.resources.known.astype(np.float64), cfg.novel))
        before = number * cfg.together
        with progress("repulsion", cfg.steps, "steps") as bar:
            for step in range(cfg.steps + 1):
                signals.check()
                vectors = np.empty((cfg.together, size))
                for some in points:
                    vectors[some.rows] = some.vectors()
                pressure = _pressure(vectors, cfg.r, fixed)
                if not (pressure.pairs or pressure.near):
                    log.info(f"source repulsion: {before + cfg.together:,} people packed, the last {cfg.together:,} in "
                             f"{step} steps")
                    return vectors
                if step < cfg.steps:
                    for some in points:
                        some.move(pressure.energy[some.rows], pressure.gradient[some.rows])
                    bar.advance(1, pairs=pressure.pairs, near=pressure.near)
        raise UserError(
            f"source repulsion: {cfg.together:,} people do not fit" + (f" beside {before:,} others" if before else "")
            + f": after {cfg.steps} steps {pressure.pairs:,} pairs of them are at r={cfg.r} or above (the highest at "
            f"{pressure.highest:.3f}), and {pressure.near:,} are too near to a known person (novel={cfg.novel}) or to "
            "one before; raise source.r or source.novel, ask for fewer, or lower source.together"
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
        pairs: Pairs that are too near.
        near: People who are too near to a fixed one.
        highest: Highest cosine of two of them; -1 for one person alone.
    """

    energy: np.ndarray
    gradient: np.ndarray
    pairs: int
    near: int
    highest: float


def _pressure(vectors: np.ndarray, r: float, fixed: list[tuple[np.ndarray, float]]) -> _Pressure:
    """Return the energies and gradients of unit vectors (N, E).

    Args:
        vectors: People who move.
        r: Cosine that any two of them stay below.
        fixed: People (M, E) who do not move, and the cosine to them to stay below.
    """
    energy, gradient = np.zeros(len(vectors)), np.zeros_like(vectors)
    is_near, pairs, highest = np.zeros(len(vectors), dtype=bool), 0, -1.0
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        among = vectors[rows] @ vectors.T
        among[np.arange(len(among)), np.arange(start, start + len(among))] = -1.0        # nobody pushes themselves
        pairs += int((among >= r - _MARGIN / 2).sum())
        highest = max(highest, float(among.max()))
        for cosines, others, limit in ((among, vectors, r), *((vectors[rows] @ o.T, o, at) for o, at in fixed)):
            if others is not vectors:
                is_near[rows] |= (cosines >= limit - _MARGIN / 2).any(axis=1)
            excess = np.maximum(cosines - (limit - _MARGIN), 0)
            energy[rows] += (excess**2).sum(axis=1)
            gradient[rows] += 2 * excess @ others
    return _Pressure(energy, gradient, pairs // 2, int(is_near.sum()), highest)
