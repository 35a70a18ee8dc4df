"""Six identities that a tiny network tells apart in seconds, and the arguments that train it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NUM_IDENTITIES, PER_IDENTITY = 6, 4


def write_faces(folder: Path, seed: int = 0) -> Path:
    """Write `pK/k.png`: a random coarse pattern for each identity, with noise for each sample."""
    generator = np.random.default_rng(seed)
    for identity in range(NUM_IDENTITIES):
        pattern = generator.integers(0, 256, (7, 7, 3))
        for sample in range(PER_IDENTITY):
            noisy = np.clip(pattern + generator.integers(-20, 20, pattern.shape), 0, 255).astype(np.uint8)
            path = folder / f"p{identity}" / f"{sample}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).resize((112, 112), Image.Resampling.BILINEAR).save(path)
    return folder


def train_arguments(faces: Path, out: Path, *more: str, epochs: int = 3) -> list[str]:
    """Return the arguments of a `train-fr` over batches of two groups; `more` comes last and wins."""
    return [
        "train-fr", "--in", str(faces), "--out", str(out), "--backbone", "ir-tiny", "--epochs", str(epochs),
        "--device", "cpu", "batch_size=8", "backbone.widths=[8,16]", "backbone.blocks=[1,1]",
        "backbone.embedding_size=32", "backbone.dropout=0.1", "norm_batch_size=4", "optimizer.lr=0.02", "workers=1",
        "log_every=1", *more,
    ]
