"""A few drawn faces with embeddings on disk, and the smallest LDM training on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_bytes, write_json
from facesyn_cli.artifacts.embedding_set import write_embeddings
from facesyn_cli.artifacts.header import Header
from facesyn_cli.data.pixels import encode_png

NUM_IDENTITIES, PER_IDENTITY, SIZE, EMBEDDING_SIZE = 5, 4, 16, 32
EMBEDDER = "sha256:" + "5" * 64

SETTINGS = (
    "device=cpu", f"image_size={SIZE}", f"output_size={SIZE}", "autoencoder_model={name: pixels, downscale: 2}",
    "denoiser.channels=32", "denoiser.multipliers=[1]", "denoiser.attention=[false]", "denoiser.num_blocks=1",
    f"denoiser.context_size={EMBEDDING_SIZE}", "denoiser.context_width=32",
    "optimizer.lr=0.002", "validation_fraction=0.2", "validate_every=5", "preview_every=0",
    "log_every=1", "checkpoint_every=3",
)


def write_faces(folder: Path) -> tuple[Path, Path]:
    """Write images `faces/p<i>/<k>.png` and an EmbeddingSet of them; return both folders."""
    rng = np.random.default_rng(0)
    keys, vectors = [], []
    for person in range(NUM_IDENTITIES):
        face, direction = rng.uniform(40, 215, (4, 4, 3)), rng.standard_normal(EMBEDDING_SIZE)
        for sample in range(PER_IDENTITY):
            light = np.clip(face + rng.normal(0, 15, face.shape), 0, 255).astype(np.uint8)
            pixels_u8 = light.repeat(SIZE // 4, axis=0).repeat(SIZE // 4, axis=1)
            write_bytes(folder / "faces" / f"p{person}" / f"{sample}.png", encode_png(pixels_u8))
            keys.append(f"p{person}/{sample}")
            vectors.append(direction + 0.2 * rng.standard_normal(EMBEDDING_SIZE))
    write_embedding_set(folder / "embeddings", keys, np.array(vectors))
    return folder / "faces", folder / "embeddings"


def write_embedding_set(folder: Path, keys: list[str], vectors: np.ndarray) -> Path:
    """Write a finished EmbeddingSet."""
    write_embeddings(folder, keys, vectors)
    digest = "sha256:" + "0" * 64
    header = Header("EmbeddingSet", "embed", {}, {}, {"images": len(keys)}, {"embedder": EMBEDDER}, digest)
    write_json(folder / "facesyn.json", asdict(header))
    return folder


def train_arguments(folder: Path, out: Path, *more: object, steps: int = 7) -> list[str]:
    """Return the command line of a training of a few steps on the faces in `folder`."""
    words = [
        "train-ldm", "--images", folder / "faces", "--embeddings", folder / "embeddings", "--out", out,
        "--steps", steps, "--batch-size", 8, *SETTINGS, *more,
    ]
    return [str(word) for word in words]
