"""The context of every image, stored beside the images so that a set can be audited and reproduced.

`image-contexts/` is an EmbeddingSet: one row per image, joined by key. It is written as a whole when the images are
finished; `variation={name: given, path: .../image-contexts}` draws images from it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically, write_json, write_text
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.embedding_set import KEYS, VECTORS
from facesyn_cli.artifacts.header import HEADER, Header
from facesyn_cli.artifacts.npy_file import write_npy_blocks
from facesyn_cli.sampling.conditions import Conditions

FOLDER = "image-contexts"
POSES = "poses.csv"  # one line per image: key, yaw in degrees, empty where it was left to the LDM
_BLOCK = 4096  # images whose contexts are in memory at once


def write_image_contexts(folder: Path, conditions: Conditions, num_images: int, embedder: str | None) -> str:
    """Write the contexts of all images of the set in `folder`; return the digest of the vectors."""
    folder = folder / FOLDER
    (folder / HEADER).unlink(missing_ok=True)  # of a smaller set
    size = conditions.contexts([0]).shape[1]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, num_images, _BLOCK):
            signals.check()
            yield conditions.contexts(range(start, min(start + _BLOCK, num_images))).numpy()

    with write_atomically(folder / VECTORS) as temporary, open(temporary, "wb") as file:
        write_npy_blocks(file, (num_images, size), np.float32, blocks())
    write_text(folder / KEYS, "".join(f"{conditions.key(image)}\n" for image in range(num_images)))
    digest = file_digest(folder / VECTORS)
    header = Header("EmbeddingSet", "sample", {}, {}, {"images": num_images}, {"embedder": embedder}, digest)
    write_json(folder / HEADER, asdict(header))
    return digest


def write_poses(folder: Path, conditions: Conditions, num_images: int) -> None:
    """Write the yaw of all images of the set in `folder`."""
    lines = ["key,yaw\n"]
    for start in range(0, num_images, _BLOCK):
        signals.check()
        images = range(start, min(start + _BLOCK, num_images))
        yaw = conditions.yaw(images).tolist()
        lines += [f"{conditions.key(image)},{'' if math.isnan(angle) else f'{angle:.2f}'}\n"
                  for image, angle in zip(images, yaw, strict=True)]
    write_text(folder / POSES, "".join(lines))
