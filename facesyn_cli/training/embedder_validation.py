"""How near a student's embeddings of held-out photos come to the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 1024


def agreement(embeddings: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the mean cosine to the teacher, and how often a photo finds its own teacher embedding first.

    Args:
        embeddings: (N, E) of the student, of any length but 0.
        targets: (N, E) unit embeddings of the teacher, row by row.

    Returns:
        `cosine`, and `rank1`: the share of rows whose own target is nearest among all targets, ties counted as found.
    """
    embeddings = F.normalize(embeddings.double(), dim=1)
    targets = targets.double()
    cosines, found = [], 0
    for rows in torch.arange(len(targets)).split(_ROWS):
        scores = embeddings[rows] @ targets.T                              # (rows, N)
        own = scores[torch.arange(len(rows)), rows]
        found += int((own >= scores.max(1).values).sum())
        cosines.append(own)
    return {"cosine": torch.cat(cosines).mean().item(), "rank1": found / len(targets)}
