"""Cached embeddings and thumbnails of an image set, computed and written part by part.

A part holds a fixed number of images in the set's order. A killed run loses at most one part. The caller names the
folder after the content of the set, the network and the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.embedding_set import normalize
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.console import log, progress
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pixels import UnreadableImage, decode_image
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.evaluation.near_duplicates import SIDE, thumbnail
from facesyn_cli.untrusted.arrays import read_archive

PART_SIZE = 1024  # images


def choose_identities(images: ImageSet, max_images: int | None, seed: int) -> list[ImageEntry]:
    """Return the images of randomly drawn identities, whole ones, until there are enough; in the set's order.

    Args:
        images: The set.
        max_images: Stop before there would be more; at least one identity is taken. None: all images.
        seed: Seed of the draw.
    """
    if max_images is None or len(images.entries) <= max_images:
        return images.entries
    groups = list(images.by_identity().values())
    total, chosen = 0, set()
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if chosen and total + len(groups[number]) > max_images:
            break
        chosen.add(groups[number][0].identity)
        total += len(groups[number])
    return [entry for entry in images.entries if entry.identity in chosen]


def embed_cached(
    images: ImageSet, entries: Sequence[ImageEntry], embedder: FaceEmbedder, folder: Path, title: str,
    has_unit_rows: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the embeddings of images.

    Args:
        images: The set.
        entries: Which of its images, N of them.
        embedder: Embeds them.
        folder: Where the parts lie.
        title: Of the progress bar.
        has_unit_rows: Make them unit length; False leaves them as the network gives them.

    Returns:
        (N, D) float32, zero rows where an image could not be embedded; (N,) whether it could.

    Raises:
        UserError: None could.
    """

    def compute(part: range) -> dict[str, NDArray]:
        batches = [part[b.start : b.stop] for b in fixed_batches(len(part), embedder.options.batch_size)]
        vectors, good = [], []
        for batch in embedder.files(lambda index: images.read(entries[index]), batches):
            signals.check()
            lengths = np.linalg.norm(batch.vectors, axis=1)
            is_good = np.isfinite(lengths) & (lengths > 0) & [index not in batch.problems for index in batch.indices]
            rows = np.zeros(batch.vectors.shape, dtype=np.float32)
            rows[is_good] = normalize(batch.vectors[is_good]) if has_unit_rows else batch.vectors[is_good]
            vectors.append(rows)
            good.append(is_good)
        return {"vectors": np.concatenate(vectors), "good": np.concatenate(good)}

    vectors, good = _joined(folder, len(entries), title, compute, ("vectors", "good"))
    if not good.any():
        raise UserError(f"none of the {len(entries)} images in {images.path} can be embedded, first "
                        f"{entries[0].location}; readable faces were expected")
    return vectors, good


def thumbnails_cached(
    images: ImageSet, entries: Sequence[ImageEntry], folder: Path, workers: int, title: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the thumbnails of images, (N, 16, 16), black where one cannot be read; (N,) whether it can; (N,) whether
    it is not square.
    """

    def small(entry: ImageEntry) -> tuple[NDArray[np.uint8] | None, bool]:
        try:
            pixels_u8 = decode_image(images.read(entry))
            return thumbnail(pixels_u8), pixels_u8.shape[0] != pixels_u8.shape[1]
        except (UnreadableImage, UserError):
            return None, False

    def compute(part: range) -> dict[str, NDArray]:
        found = list(ordered_map(small, [entries[index] for index in part], workers))
        black = np.zeros((SIDE, SIDE), dtype=np.uint8)
        return {"thumbnails": np.stack([black if one is None else one for one, _ in found]),
                "good": np.array([one is not None for one, _ in found]), "cut": np.array([cut for _, cut in found])}

    return _joined(folder, len(entries), title, compute, ("thumbnails", "good", "cut"))


def _joined(
    folder: Path, count: int, title: str, compute: Callable[[range], dict[str, NDArray]], names: tuple[str, ...]
) -> tuple[NDArray, ...]:
    """Return arrays over all images, from the parts on disk and those still to compute."""
    parts = {part: folder / f"{part.start:09d}-{part.stop:09d}.npz" for part in fixed_batches(count, PART_SIZE)}
    joined: list[NDArray] = []
    with progress(title, count, done=sum(len(part) for part, path in parts.items() if path.is_file())) as bar:
        for part, path in parts.items():
            content = _read(path)
            if content is None or not content.keys() >= set(names):  # an earlier version kept less
                content = compute(part)
                with write_atomically(path, durable=False) as temporary, open(temporary, "wb") as file:
                    np.savez(file, **content)
                bar.advance(len(part))
            if not joined:
                joined = [np.empty((count, *content[name].shape[1:]), content[name].dtype) for name in names]
            for whole, name in zip(joined, names, strict=True):
                whole[part.start : part.stop] = content[name]
            signals.check()
    return tuple(joined)


def _read(path: Path) -> dict[str, NDArray] | None:
    """Return a finished part, or None when it is missing or damaged."""
    try:
        return read_archive(path) if path.exists() else None
    except UserError as error:
        log.warning(f"{path} is damaged ({error}); computing it again")
        return None
