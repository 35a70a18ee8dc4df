"""The second condition of a denoiser: how far the head is turned.

A context of a network with a pose has one number more than a face embedding: the yaw in degrees (`data/pose.py`), NaN
where it is unknown. Contexts without that number are of unknown yaw too, so whatever draws faces works unchanged.

The embedding is added to that of the timestep. It is zero where the yaw is unknown, and for every yaw at the start of a
training, so a network trained without poses goes on from where it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WAVES = 8


class PoseEmbedding(nn.Module):
    """Embedding of a yaw: sinusoids, linear, SiLU, linear.

    The sinusoids are [cos(k a), sin(k a)], k = 1 .. 8, of the angle a.

    Args:
        width: Numbers of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(2 * _WAVES, width)
        self.lin2 = nn.Linear(width, width)
        self.reset()

    def reset(self) -> None:
        """Set the last layer to zero."""
        nn.init.zeros_(self.lin2.weight)
        nn.init.zeros_(self.lin2.bias)

    def forward(self, yaw: Tensor) -> Tensor:
        """Return the embeddings (B, width) of angles (B,) in degrees; zero where they are NaN."""
        is_known = yaw.isfinite()
        angle = yaw.float().nan_to_num().deg2rad()[:, None] * torch.arange(1, 1 + _WAVES, device=yaw.device)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.lin1.weight.dtype)      # (B, 16)
        return self.lin2(F.silu(self.lin1(waves))) * is_known[:, None]


def split_pose(context: Tensor, size: int, takes_pose: bool) -> tuple[Tensor, Tensor | None]:
    """Return the face embeddings (B, size) of contexts and the yaw (B,) behind them; None: there is none.

    Args:
        context: (B, size), or (B, size + 1) with the yaw.
        size: Numbers of a face embedding.
        takes_pose: Whether the network has a `PoseEmbedding`.

    Raises:
        ValueError: The contexts have another width, or a yaw that the network does not take.
    """
    if context.shape[1] == size:
        return context, None
    if context.shape[1] != size + 1 or not takes_pose:
        also = f", or {size + 1} with the yaw," if takes_pose else ""
        raise ValueError(f"contexts of {size} numbers{also} were expected, got {context.shape[1]}")
    return context[:, :size], context[:, size]
