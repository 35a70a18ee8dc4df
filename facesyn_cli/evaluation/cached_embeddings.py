"""Cached embeddings and thumbnails of an image set, computed and written part by part.

A part holds a fixed number of images in the set's order, so what is computed does not depend on the number of
processes that divide the parts. A killed run loses at most one part of each. The caller names the folder after the
content of the set, the network and the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.embedding_set import normalize
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.console import log
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.pixels import UnreadableImage, decode_image
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbeddedBatch, FaceEmbedder
from facesyn_cli.evaluation.near_duplicates import SIDE, thumbnail
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.arrays import read_archive

PART_SIZE = 256      # images
LENGTHS = "lengths"  # array of the lengths of the embeddings before they were made unit rows, (N,) float32


@dataclass(frozen=True)
class CachedArrays:
    """Arrays over the images of a set, in parts on disk.

    Args:
        folder: Where the parts lie.
        count: N, number of images.
        title: Of the progress bar.
        compute: Parts (ranges of images) -> for each of them in order, array by name, with a row per image; its second
            argument is called with the number of images finished since the last call.
        names: Names of the arrays.
        check: Called with the array of the last name; raises a UserError where the set is of no use.
    """

    folder: Path
    count: int
    title: str
    compute: Callable[[Sequence[range], Callable[[int], None]], Iterator[dict[str, NDArray]]]
    names: tuple[str, ...]
    check: Callable[[NDArray], None] = lambda last: None

    def fill(self, processes: Processes) -> None:
        """Compute the missing parts, divided over processes. A collective."""
        missing = processes.from_first(lambda: [part for part in self._parts() if not self._path(part).is_file()])
        mine = share(missing, processes.rank, processes.world_size)
        for _ in self._computed(mine):
            pass
        processes.barrier()

    def read(self) -> tuple[NDArray, ...]:
        """Return the whole arrays, in the order of their names; missing and damaged parts are computed.

        Raises:
            UserError: As `check`.
        """
        return self._read(self.names)

    def last(self) -> NDArray:
        """Return the array of the last name only; as `read`, with less memory."""
        return self._read(self.names[-1:])[0]

    def if_kept(self, name: str) -> NDArray | None:
        """Return an array that earlier versions did not keep; None where any part lacks it. Computes nothing."""
        parts = []
        for part in self._parts():
            content = _read(self._path(part))
            if content is None or name not in content:
                return None
            parts.append(content[name])
            signals.check()
        return np.concatenate(parts)

    def _read(self, names: tuple[str, ...]) -> tuple[NDArray, ...]:
        joined: list[NDArray] = []
        for part in self._parts():
            content = _read(self._path(part))
            if content is None or not content.keys() >= set(self.names):  # an earlier version kept less
                [content] = self._computed([part])
            if not joined:
                joined = [np.empty((self.count, *content[name].shape[1:]), content[name].dtype) for name in names]
            for whole, name in zip(joined, names, strict=True):
                whole[part.start : part.stop] = content[name]
            signals.check()
        self.check(joined[-1])
        return tuple(joined)

    def _parts(self) -> list[range]:
        return fixed_batches(self.count, PART_SIZE)

    def _path(self, part: range) -> Path:
        return self.folder / f"{part.start:09d}-{part.stop:09d}.npz"

    def _computed(self, parts: list[range]) -> Iterator[dict[str, NDArray]]:
        """Yield the arrays of each part, computed and written."""
        with progress(self.title, sum(map(len, parts))) as bar:

            def advance(count: int) -> None:
                bar.advance(count)
                signals.check()

            for part, content in zip(parts, self.compute(parts, advance), strict=True):
                with write_atomically(self._path(part), durable=False) as temporary, open(temporary, "wb") as file:
                    np.savez(file, **content)
                yield content


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
) -> CachedArrays:
    """Return the cache of the embeddings of images: (N, D) float32, zero rows where an image could not be embedded; and
    (N,) whether it could. It is of no use where none could.

    Args:
        images: The set.
        entries: Which of its images, N of them.
        embedder: Embeds them.
        folder: Where the parts lie.
        title: Of the progress bar.
        has_unit_rows: Make them unit length; False leaves them as the network gives them.
    """

    def compute(parts: Sequence[range], advance: Callable[[int], None]) -> Iterator[dict[str, NDArray]]:
        for batches in embedder.parts(lambda index: images.read(entries[index]), parts, advance):
            found = [_usable_rows(batch, has_unit_rows) for batch in batches]
            vectors, good, lengths = (np.concatenate(columns) for columns in zip(*found, strict=True))
            yield {"vectors": vectors, "good": good, LENGTHS: lengths}

    def check(good: NDArray) -> None:
        if not good.any():
            raise UserError(f"none of the {len(entries)} images in {images.path} can be embedded, first "
                            f"{entries[0].location}; readable faces were expected")

    return CachedArrays(folder, len(entries), title, compute, ("vectors", "good"), check)


def _usable_rows(
    batch: EmbeddedBatch, has_unit_rows: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Return the rows of a batch, zero where there is no embedding; where there is one; and the lengths as computed."""
    lengths = np.linalg.norm(batch.vectors, axis=1)
    is_good = np.isfinite(lengths) & (lengths > 0) & [index not in batch.problems for index in batch.indices]
    rows = np.zeros(batch.vectors.shape, dtype=np.float32)
    rows[is_good] = normalize(batch.vectors[is_good]) if has_unit_rows else batch.vectors[is_good]
    return rows, is_good, np.where(is_good, lengths, 0).astype(np.float32)


def thumbnails_cached(
    images: ImageSet, entries: Sequence[ImageEntry], folder: Path, workers: int, title: str
) -> CachedArrays:
    """Return the cache of the thumbnails of images: (N, 16, 16) uint8, black where one cannot be read; (N,) whether it
    can; and (N,) whether it is not square.
    """

    def small(entry: ImageEntry) -> tuple[NDArray[np.uint8] | None, bool]:
        try:
            pixels_u8 = decode_image(images.read(entry))
            return thumbnail(pixels_u8), pixels_u8.shape[0] != pixels_u8.shape[1]
        except (UnreadableImage, UserError):
            return None, False

    def compute(parts: Sequence[range], advance: Callable[[int], None]) -> Iterator[dict[str, NDArray]]:
        black = np.zeros((SIDE, SIDE), dtype=np.uint8)
        results = ordered_map(small, (entries[index] for part in parts for index in part), workers)
        for part in parts:
            found = list(islice(results, len(part)))
            advance(len(part))
            yield {"thumbnails": np.stack([black if one is None else one for one, _ in found]),
                   "good": np.array([one is not None for one, _ in found]), "cut": np.array([cut for _, cut in found])}

    return CachedArrays(folder, len(entries), title, compute, ("thumbnails", "good", "cut"))


def _read(path: Path) -> dict[str, NDArray] | None:
    """Return a finished part, or None when it is missing or damaged."""
    try:
        return read_archive(path) if path.exists() else None
    except UserError as error:
        log.warning(f"{path} is damaged ({error}); computing it again")
        return None
