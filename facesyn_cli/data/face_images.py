"""Dataset of the images of a set at one size, decoded by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.data.pixels import UnreadableImage, decode_image, fit_square, resize_u8
from facesyn_cli.errors import UserError


class FaceImages(Dataset):
    """Rows of an image set as squares of one size.

    Resized with PIL's antialiased bilinear filter, as published.

    # Differs from IDiff-Face / ADMIS: of an image that is not square the central square is taken, as in `embed`; they
    # stretch it.

    Args:
        images: The set.
        entries: Which of its images, row by row.
        size: Side in pixels.
    """

    def __init__(self, images: ImageSet, entries: Sequence[ImageEntry], size: int) -> None:
        self.images, self.entries, self.size = images, list(entries), size

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return (size, size, 3) uint8 RGB of one row.

        Raises:
            UserError: The image is gone or unreadable.
        """
        entry = self.entries[row]
        try:
            pixels_u8 = decode_image(self.images.read(entry))
        except UnreadableImage as error:
            raise UserError(
                f"cannot read {entry.location} in {self.images.path}: {error}; "
                "remove it, or run `facesyn embed` again, which leaves such images out"
            ) from error
        return np.array(resize_u8(fit_square(pixels_u8), self.size))


def image_batches(faces: FaceImages, batches: Iterable[Sequence[int]], workers: int) -> Iterator[Tensor]:
    """Yield the images of each batch of rows, in the order of the batches.

    Args:
        faces: The images.
        batches: Rows of each batch; may be endless.
        workers: Processes that decode; 0 decodes in this one. The images do not depend on it.

    Returns:
        (B, size, size, 3) uint8 for every batch.

    Raises:
        UserError: An image is gone or unreadable.
    """
    loader = DataLoader(_Tolerant(faces), batch_sampler=batches, num_workers=workers, collate_fn=_collate)
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield torch.from_numpy(batch)


class _Tolerant(Dataset):
    """Returns an error as an item: raised in a worker, its message would contain the traceback of the worker."""

    def __init__(self, faces: FaceImages) -> None:
        self._faces = faces

    def __getitem__(self, row: int) -> np.ndarray | UserError:
        try:
            return self._faces[row]
        except UserError as error:
            return error


def _collate(items: list[np.ndarray | UserError]) -> np.ndarray | UserError:
    """Join a batch as a NumPy array: tensors would need shared memory, of which containers have little."""
    for item in items:
        if isinstance(item, UserError):
            return item
    return np.stack(items)
