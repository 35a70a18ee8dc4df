"""Faces for the packaged autoencoder taesd3, a recognizer of their latents, and the smallest LDM on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_ldm import write_embedding_set

from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.data.pixels import encode_png

SIDE, EMBEDDING_SIZE, PEOPLE, PHOTOS = 32, 16, 10, 3


def write_faces(folder: Path) -> Path:
    """Write `faces/p<person>/<photo>.png` of 32 x 32 and `embeddings`: a map of the two colors of a face."""
    generator = np.random.default_rng(0)
    project = generator.standard_normal((6, EMBEDDING_SIZE))
    keys, vectors = [], []
    for person in range(PEOPLE):
        colors = generator.uniform(40, 215, (2, 1, 3))
        for photo in range(PHOTOS):
            pixels = np.broadcast_to(colors, (2, SIDE, 3)).repeat(SIDE // 2, axis=0) + generator.uniform(-15, 15, 3)
            write_bytes(folder / "faces" / f"p{person}" / f"{photo}.png", encode_png(pixels.clip(0, 255).astype("u1")))
            keys.append(f"p{person}/{photo}")
            vectors.append((colors.reshape(-1) / 127.5 - 1) @ project)
    write_embedding_set(folder / "embeddings", keys, np.array(vectors))
    contexts = generator.standard_normal((5, EMBEDDING_SIZE)).astype(np.float32)
    np.save(folder / "contexts.npy", contexts / np.linalg.norm(contexts, axis=1, keepdims=True))
    return folder


def embedder_arguments(folder: Path, out: Path, *more: object, steps: int = 6) -> list[str]:
    """Return the command line that trains a recognizer of the latents; `more` comes last and wins."""
    words = [
        "train-identity", "--images", folder / "faces", "--embeddings", folder / "embeddings", "--out", out,
        "--steps", steps, "--autoencoder", "taesd3", f"image_size={SIDE}", "device=cpu",
        f"backbone={{name: latent-ir, latent_size: 4, widths: [16], blocks: [1], embedding_size: {EMBEDDING_SIZE}}}",
        "batch_size=16", "norm_batch_size=8", "optimizer.lr=0.01", "lr_schedule.warmup_steps=2",
        "validation_fraction=0.3", "log_every=1", "checkpoint_every=3", f"latent_cache={folder / 'latents'}", *more,
    ]
    return [str(word) for word in words]


def ldm_arguments(folder: Path, out: Path, *more: object, steps: int = 6) -> list[str]:
    """Return the command line that trains an LDM on the latents; `more` comes last and wins."""
    words = [
        "train-ldm", "--images", folder / "faces", "--embeddings", folder / "embeddings", "--out", out,
        "--steps", steps, "--autoencoder", "taesd3", "device=cpu", f"image_size={SIDE}", f"output_size={SIDE}",
        f"denoiser={{name: dit, width: 32, depth: 2, heads: 2, context_size: {EMBEDDING_SIZE}, context_width: 16}}",
        "prediction=flow", "batch_size=8", "optimizer.lr=0.003", "validation_fraction=0.2", "validate_every=3",
        "preview_every=0", "log_every=1", "checkpoint_every=2", "context_dropout=0.2",
        f"latent_cache={folder / 'latents'}", *more,
    ]
    return [str(word) for word in words]
