"""Input files of benchmarks: given faces or smooth random images, embeddings, pairs, weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from facesyn_cli.artifacts.atomic_files import write_bytes, write_json, write_text
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedding_set import write_embeddings
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.data.pixels import encode_jpeg

_SIZE = 112  # pixels, as recognizers read them


def write_faces(folder: Path, count: int, per_id: int) -> tuple[list[Path], list[int]]:
    """Write JPEGs `<identity>/<sample>.jpg` about as detailed as faces; return their paths and labels."""
    random = np.random.RandomState(0)
    paths, labels = [], []
    for index in range(count):
        row, sample = divmod(index, per_id)
        coarse = Image.fromarray(random.randint(0, 256, (9, 9, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(pixels + random.randint(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(folder / str(row) / f"{sample}.jpg")
        labels.append(row)
        write_bytes(paths[-1], encode_jpeg(pixels), durable=False)
    return paths, labels


def faces_for(cfg: BenchConfig, folder: Path, batch_size: int = 1) -> tuple[list[Path], list[int]]:
    """Write the images of a benchmark, those of `cfg.faces` or random ones; return their paths and labels.

    Images that do not fill a batch are left out, if there is at least one batch: of the loops that are compared, one
    would skip them and the other repeat some.

    Raises:
        UserError: `cfg.faces` is no folder or zip of images.
    """
    images = None if cfg.faces is None else ImageSet.open(cfg.faces)
    count = cfg.images or 256 if images is None else len(images.entries[: cfg.images])
    count -= count % batch_size if count > batch_size else 0
    if images is None:
        return write_faces(folder, count, cfg.per_id)
    paths, labels = [], []
    numbers: dict[str, int] = {}
    for row, entry in enumerate(images.entries[:count]):
        label = numbers.setdefault(entry.identity, len(numbers))
        paths.append(folder / str(label) / f"{row}{Path(entry.location).suffix}")
        labels.append(label)
        write_bytes(paths[-1], images.read(entry), durable=False)
    return paths, labels


def write_embeddings_of(folder: Path, images: Path, width: int) -> np.ndarray:
    """Write an EmbeddingSet of random unit rows for a folder of images; return them, (N, width) float32."""
    keys = [entry.key for entry in ImageSet.open(images).entries]
    vectors = np.random.RandomState(1).standard_normal((len(keys), width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_embeddings(folder, keys, vectors)
    digest = json_digest(["random", len(keys), width])
    header = Header("EmbeddingSet", "embed", {}, {}, {"images": len(keys)}, {"embedder": digest}, digest)
    write_json(folder / "facesyn.json", asdict(header))
    return vectors


def write_pairs(path: Path, images: Path, files: list[Path]) -> np.ndarray:
    """Write a list of pairs of neighboring files in 10 folds, every other one called genuine; return the answers."""
    is_same = np.arange(len(files) // 2) % 2 == 0
    names = [file.relative_to(images).as_posix() for file in files]
    lines = [f"{names[2 * i]}\t{names[2 * i + 1]}\t{int(same)}\n" for i, same in enumerate(is_same)]
    write_text(path, f"10\n{''.join(lines)}")
    return is_same


def write_network(folder: Path, kind: str, section: dict[str, Any], module: nn.Module) -> Path:
    """Write a Weights folder of a backbone or autoencoder and return it."""
    write_weights(folder, module.state_dict(), {"kind": kind, kind: section})
    return folder
