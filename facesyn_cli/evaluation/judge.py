"""A judge: a face recognizer that looks at finished images and says who they are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from facesyn_cli.artifacts.embedding_set import normalize
from facesyn_cli.data.pixels import resize_pixels, to_pixels
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.evaluation.embedding import EmbedOptions, embed_faces


class Judge:
    """Embeds finished faces; the network always sees full batches, so threads and batches do not matter.

    Args:
        network: (B, 3, size, size) in [-1, 1] -> (B, D), in eval mode.
        size: Side of its input in pixels.
        device: Where it shall run; it is moved there.
        batch_size: Faces a batch.
    """

    def __init__(self, network: nn.Module, size: int, device: torch.device, batch_size: int = 32) -> None:
        self._network = network.to(device)
        self._options = EmbedOptions(size, batch_size, device, flip=False, fit="square")

    def embed(self, faces_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, D) float32 unit rows of (N, S, S, 3) uint8 faces, N >= 1.

        Raises:
            UserError: An embedding is zero or not finite.
        """
        rows = []
        for batch in fixed_batches(len(faces_u8), self._options.batch_size):
            faces = to_pixels(faces_u8[batch.start : batch.stop])
            pixels = resize_pixels(faces, self._options.size, antialias=True)
            rows.append(embed_faces(self._network, list(pixels), self._options))
        return normalize(np.concatenate(rows))
