"""Identification of probes among the people of a gallery (TinyFace, Cheng et al., ACCV 2018).

Every probe is compared with every gallery image by the cosine of their embeddings. Its rank is the place of
the first image of the same person, that is 1 + the number of images of others (distractors included) with
at least the cosine of the best image of that person; the rate at rank k is the share of probes with a rank
of at most k.

Layout: `gallery/<person>/...`, `probe/<person>/...`, and, optionally, `distractors/...` whose people are in
neither. The format of TinyFace's own lists is not supported; sort its images into these folders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.verification import unit_rows

RANKS = (1, 5, 20)
FOLDERS = ("gallery", "probe", "distractors")
_PROBES_AT_ONCE = 128


@dataclass(frozen=True)
class IdentificationSet:
    """Gallery and probes with their people."""

    unit: ClassVar[str] = "probes"

    name: str                     # name in the table
    images: list[str]             # name of each image, gallery (with distractors) first, then probes
    read: Callable[[int], bytes]  # from an index to the encoded bytes; safe to call from several threads
    person: NDArray[np.int64]     # (images,) number of the person; -1 for distractors
    num_gallery: int              # how many of the images are the gallery
    flip: bool = True             # use the flip test

    def __len__(self) -> int:
        return len(self.images) - self.num_gallery

    def evaluate(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the rank of every probe; see `EvaluationSet.evaluate`."""
        if not np.isfinite(vectors).all():
            raise UserError(f"{self.name}: the network returned NaN or infinite embeddings")
        unit, n = unit_rows(vectors), self.num_gallery
        ranks = probe_ranks(unit[:n], self.person[:n], unit[n:], self.person[n:])
        row = BenchmarkRow(
            benchmark=self.name, pairs=len(self), rank={str(k): float(np.mean(ranks <= k)) for k in RANKS}
        )
        return row, {"rank": ranks}


def probe_ranks(
    gallery: NDArray, gallery_person: NDArray, probe: NDArray, probe_person: NDArray
) -> NDArray[np.int64]:
    """Return the (P,) rank of every probe, 1 is best.

    Args:
        gallery: (G, D) unit embeddings.
        gallery_person: (G,) numbers; -1 for distractors.
        probe: (P, D) unit embeddings.
        probe_person: (P,) numbers, each in the gallery.
    """
    ranks = np.empty(len(probe), np.int64)
    for start in range(0, len(probe), _PROBES_AT_ONCE):
        part = slice(start, start + _PROBES_AT_ONCE)
        cosine = probe[part] @ gallery.T                                      # (p, G)
        is_mate = gallery_person == probe_person[part, None]                  # (p, G)
        best = np.where(is_mate, cosine, -np.inf).max(axis=1, keepdims=True)
        ranks[part] = 1 + np.sum(~is_mate & (cosine >= best), axis=1)
    return ranks


def read_identification(root: Path, name: str, flip: bool) -> IdentificationSet:
    """Read gallery, probes and distractors from their folders.

    Raises:
        UserError: A folder is missing, or a probe's person is not in the gallery.
    """
    for folder in FOLDERS[:2]:
        if not (root / folder).is_dir():
            raise UserError(f"{name}: {root / folder} does not exist; folders {', '.join(FOLDERS)} were expected")
    sets = {folder: ImageSet.open(root / folder) for folder in FOLDERS if (root / folder).is_dir()}
    numbers = {person: k for k, person in enumerate(sets["gallery"].by_identity())}
    strangers = [entry for entry in sets["probe"].entries if entry.identity not in numbers]
    if strangers:
        raise UserError(f"{name}: {len(strangers)} probes show people who are not in the gallery, "
                        f"the first is {strangers[0].location}")
    order = [(sets[f], e) for f in ("gallery", "distractors", "probe") if f in sets for e in sets[f].entries]
    return IdentificationSet(
        name=name,
        images=[f"{images.path.name}/{entry.location}" for images, entry in order],
        read=lambda index: order[index][0].read(order[index][1]),
        person=np.array([-1 if images.path.name == "distractors" else numbers[e.identity] for images, e in order]),
        num_gallery=len(order) - len(sets["probe"].entries),
        flip=flip,
    )
