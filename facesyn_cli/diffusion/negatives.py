"""Which other identity an image is guided away from: rows of a pool of contexts.

NegFaceDiff (arXiv:2508.09661) takes the empty context, or that of a close, middling, far or random identity.
"Close" is read here as the highest cosine, "far" as the lowest and "mid" as the middle rank; `random` draws a
row per image. A row that is the identity's own context is never taken.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError

CHOICES = ("close", "mid", "far", "random")
_SAME = 1 - 1e-5  # cosine from which a row is the same context


class NegativeContexts:
    """Chooses the negative context of each image; safe to share between threads.

    Args:
        pool: (M, E) float32 unit contexts to choose from.
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
        self._lock = threading.Lock()

    def context(self, own: Tensor, identity: str, sample: int) -> Tensor:
        """Return the negative context (E,) of an image.

        Args:
            own: (E,) unit context of the image's identity.
            identity: Name of the identity.
            sample: Number of the image; only `random` looks at it.

        Raises:
            UserError: The pool holds nothing but the identity's own context.
        """
        if self._choice == "random":
            return torch.from_numpy(self._pool[self._random_row(own.numpy(), identity, sample)])
        with self._lock:
            row = self._row_of.get(identity)
        if row is None:
            row = self._ranked_row(own.numpy(), identity)
            with self._lock:
                self._row_of[identity] = row
        return torch.from_numpy(self._pool[row])

    def _ranked_row(self, own: np.ndarray, identity: str) -> int:
        cosines = self._pool @ own                                         # (M,)
        others = np.flatnonzero(cosines < _SAME)
        if not len(others):
            raise UserError(f"the contexts to guide away from hold nothing but the context of identity {identity!r}")
        order = others[np.argsort(-cosines[others], kind="stable")]        # closest first
        return int(order[{"close": 0, "mid": (len(order) - 1) // 2, "far": -1}[self._choice]])

    def _random_row(self, own: np.ndarray, identity: str, sample: int) -> int:
        random = keyed_random("negative", self._seed, identity, sample)
        for _ in range(100):
            row = int(random.randint(len(self._pool)))
            if self._pool[row] @ own < _SAME:
                return row
        raise UserError(f"the contexts to guide away from hold hardly anything but the context of {identity!r}")
