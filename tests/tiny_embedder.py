"""Drawn people with the embeddings of a made-up teacher, and the arguments that train a small student on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_ldm import write_embedding_set

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.data.pixels import encode_png

EMBEDDING_SIZE = 16

SETTINGS = (
    "device=cpu", "backbone.widths=[8,16]", "backbone.blocks=[1,1]", f"backbone.embedding_size={EMBEDDING_SIZE}",
    "batch_size=16", "norm_batch_size=8", "optimizer.lr=0.01", "lr_schedule.warmup_steps=2", "validation_fraction=0.3",
    "log_every=1", "checkpoint_every=3", "workers=1",
)


def write_taught_faces(folder: Path, people: int = 12, photos: int = 2) -> Path:
    """Write `faces/p<person>/<photo>.png` and `embeddings`.

    A face has one color above and one below, with noise; the teacher maps these six numbers to an embedding.
    """
    generator = np.random.default_rng(0)
    project = generator.standard_normal((6, EMBEDDING_SIZE))
    keys, vectors = [], []
    for person in range(people):
        colors = generator.uniform(40, 215, (2, 1, 3))
        for photo in range(photos):
            pixels = np.broadcast_to(colors, (2, 14, 3)).repeat(7, axis=0) + generator.uniform(-30, 30, (14, 14, 3))
            pixels_u8 = pixels.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            write_bytes(folder / "faces" / f"p{person}" / f"{photo}.png", encode_png(pixels_u8))
            keys.append(f"p{person}/{photo}")
            vectors.append((pixels.reshape(2, 7, 14, 3).mean((1, 2)).reshape(-1) / 127.5 - 1) @ project)
    write_embedding_set(folder / "embeddings", keys, np.array(vectors))
    return folder


def train_arguments(folder: Path, out: Path, *more: object, steps: int = 7) -> list[str]:
    """Return the command line of a short training on the faces in `folder`; `more` comes last and wins."""
    words = [
        "train-embedder", "--images", folder / "faces", "--embeddings", folder / "embeddings", "--out", out,
        "--steps", steps, "--backbone", "ir-lite", *SETTINGS, *more,
    ]
    return [str(word) for word in words]
