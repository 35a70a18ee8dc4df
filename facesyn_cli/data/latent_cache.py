"""Cache of the latents of an image set on disk, so that training does not run the encoder.

    <folder>/<key>/latents.json        what the parts hold
    <folder>/<key>/part-00000.npy      (rows, views, c, h, w) float32: of each image, and of its mirror image

The key is a digest of the content: images, autoencoder, size and rows. A part appears by rename and holds `PART_ROWS`
images encoded in fixed batches, so a killed run resumes, and the files do not depend on the number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_atomically, write_json
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.npy_file import write_npy
from facesyn_cli.data.face_images import FaceImages, image_batches
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.sharding import fixed_batches, row_batches
from facesyn_cli.errors import UserError
from facesyn_cli.progress import Progress
from facesyn_cli.untrusted.arrays import map_array

PART_ROWS = 1024
ENCODE_BATCH = 32
_MARGIN = 1 << 30  # bytes that stay free on a disk


class LatentCache:
    """The cached latents of a list of images; rows are those of the list.

    Args:
        folder: Where caches lie; this one takes a sub-folder of its own.
        faces: The images.
        autoencoder: Digest of the autoencoder.
        latent_shape: (c, h, w) of one latent.
        has_mirror: Whether the mirror images are cached too; without them it takes half the time and space.
        precision: Number format of the encoder.
    """

    def __init__(
        self,
        folder: Path,
        faces: FaceImages,
        autoencoder: str,
        latent_shape: tuple[int, int, int],
        has_mirror: bool = True,
        precision: str = "fp32",
    ) -> None:
        self.faces, self.latent_shape = faces, latent_shape
        self.num_views = 2 if has_mirror else 1
        self.content = {
            "images": faces.images.digest,
            "autoencoder": autoencoder,
            "image_size": faces.size,
            "num_images": len(faces),
            "keys": json_digest([entry.key for entry in faces.entries]),
            "latent_shape": list(latent_shape),
            "views": self.num_views,
            **({} if precision == "fp32" else {"precision": precision}),
        }
        self.folder = folder / json_digest(self.content).removeprefix("sha256:")[:16]
        self._parts = fixed_batches(len(faces), PART_ROWS)
        self._open: list[np.ndarray] = []

    @property
    def num_bytes(self) -> int:
        """Size of the whole cache on disk."""
        return len(self.faces) * self.num_views * int(np.prod(self.latent_shape)) * 4

    def fits(self, reserve: int = 0) -> bool:
        """Return whether what is missing fits on the disk.

        Args:
            reserve: Bytes that something else will take there; `_MARGIN` is left free besides.
        """
        needed = self.num_bytes * (len(self.faces) - self.num_done()) / len(self.faces)
        return needed == 0 or needed + reserve + _MARGIN <= free_bytes(self.folder)

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not on disk yet."""
        return [number for number in range(len(self._parts)) if not self._path(number).is_file()]

    def num_done(self) -> int:
        """Return how many images are in finished parts."""
        return len(self.faces) - sum(len(self._parts[number]) for number in self.missing())

    def fill(
        self, numbers: Sequence[int], encode: Callable[[Tensor], Tensor], progress: Progress, workers: int
    ) -> None:
        """Encode and write some parts.

        Args:
            numbers: Which parts: this process's share of `missing()`.
            encode: Pixels (B, 3, S, S) in [-1, 1] on the CPU -> latents (B, c, h, w) on the CPU.
            progress: Advanced after every batch.
            workers: Processes that decode images.
        """
        if numbers:
            write_json(self.folder / "latents.json", self.content)
        for number in numbers:
            rows = self._parts[number]
            batches = row_batches(rows, ENCODE_BATCH)
            latents = np.empty((len(rows), self.num_views, *self.latent_shape), dtype=np.float32)
            start = 0
            for pixels_u8 in image_batches(self.faces, batches, workers):
                pixels = to_pixels(pixels_u8)
                end = start + len(pixels)
                latents[start:end, 0] = encode(pixels).numpy()
                if self.num_views == 2:
                    latents[start:end, 1] = encode(pixels.flip(-1)).numpy()
                start = end
                progress.advance(len(pixels))
                signals.check()
            if not np.isfinite(latents).all():
                bad = self.faces.entries[rows[int(np.argwhere(~np.isfinite(latents))[0][0])]]
                raise UserError(f"the autoencoder gives latents that are not finite, first for image {bad.key!r}")
            with write_atomically(self._path(number)) as temporary, open(temporary, "wb") as file:
                write_npy(file, latents)

    def read(self, rows: Sequence[int], is_mirrored: Sequence[bool]) -> Tensor:
        """Return (B, c, h, w) latents of some rows, or of their mirror images."""
        if not self._open:
            self._open = [self._map(number) for number in range(len(self._parts))]
        return torch.from_numpy(np.stack([
            self._open[row // PART_ROWS][row % PART_ROWS, int(mirrored)]
            for row, mirrored in zip(rows, is_mirrored, strict=True)
        ]))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npy"

    def _map(self, number: int) -> np.ndarray:
        path = self._path(number)
        try:
            part = map_array(path, "a part of the cache of latents")
        except UserError as error:
            raise UserError(f"{path} is damaged; remove it and run the same command again: {error}") from error
        expected = (len(self._parts[number]), self.num_views, *self.latent_shape)
        if part.shape != expected or part.dtype != np.float32:
            raise UserError(f"{path} holds {part.dtype} {part.shape}, expected float32 {expected}; remove it")
        return part


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def channel_statistics(batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over (B, c, h, w) latents, summed in float64.

    Raises:
        UserError: A channel is constant, so there is nothing to normalize by.
    """
    total = square = torch.zeros(())
    count = 0
    for latents in batches:
        values = latents.double()
        total = total + values.sum(dim=(0, 2, 3))
        square = square + values.square().sum(dim=(0, 2, 3))
        count += values.numel() // values.shape[1]
    mean = total / count
    variance = square / count - mean.square()
    flat = [channel for channel, value in enumerate(variance.tolist()) if not value > 1e-12]
    if flat:
        raise UserError(f"latent channel {flat[0]} is the same for all images; is this the right autoencoder?")
    return mean.tolist(), variance.sqrt().tolist()
