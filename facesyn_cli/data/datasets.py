"""Training examples for recognition: several weighted sets as one dataset.

The weight of a set is the number of times each of its images is seen per epoch: 1 once, 2 twice, 0.5 every second one,
with another half each epoch. Identities of different sets stay distinct, whatever their names.

Example (epoch, row) depends on (seed, epoch, row) only, not on the number of worker processes or on resuming.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet, natural_labels
from facesyn_cli.console import log
from facesyn_cli.data.decoded_cache import CacheChoice, CachePlan, DecodedCache, file_stamps, plan_caches
from facesyn_cli.data.pixels import UnreadableImage, decode_image, fit_square, resize_u8
from facesyn_cli.data.transforms import Transform
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError


class LabeledSet(Protocol):
    """A set of labeled images to train on; picklable.

    Attributes:
        labels: (N,) int32, 0..num_classes-1.
        num_classes: Number of identities.
    """

    labels: np.ndarray
    num_classes: int

    def read(self, index: int) -> bytes:
        """Return one encoded image."""

    def name_of(self, index: int) -> str:
        """Return the name of an image, for messages."""

    def content(self) -> Any:
        """Return a JSON value that names the images, in order; it changes when a file of theirs is written again."""


class LabeledRecords:
    """A packed set for training, all of it or some of its rows."""

    def __init__(self, records: RecordSet, rows: np.ndarray | None = None) -> None:
        self._records = records
        self._rows = np.arange(len(records)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.labels, self.num_classes = records.labels[self._rows], records.num_classes

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._records.read(int(self._rows[index]))

    def name_of(self, index: int) -> str:
        """Return the name of an image."""
        return f"record {self._rows[index]} of {self._records.path}"

    def content(self) -> Any:
        """Return a JSON value that names the images."""
        return [self._records.digest, file_stamps(self._records.files()), rows_digest(self._rows)]


class LabeledImages:
    """An image set for training, all of it or some of its rows; labels are those that packing it would give."""

    def __init__(self, images: ImageSet, rows: np.ndarray | None = None) -> None:
        names, owners = np.unique(np.array([e.identity for e in images.entries], dtype=object), return_inverse=True)
        _, labels = natural_labels(list(names))
        self._images = images
        self._rows = np.arange(len(images.entries)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.labels, self.num_classes = labels[owners][self._rows], len(names)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self._images.read(self._images.entries[self._rows[index]])

    def name_of(self, index: int) -> str:
        """Return the name of an image."""
        return f"{self._images.entries[self._rows[index]].location} in {self._images.path}"

    def content(self) -> Any:
        """Return a JSON value that names the images."""
        return [self._images.digest, file_stamps(self._images.files()), rows_digest(self._rows)]


@dataclass(frozen=True)
class WeightedSet:
    """One of the sets to train on.

    Args:
        examples: The set.
        weight: Number of times each image is seen per epoch.
    """

    examples: LabeledSet
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf") or self.epoch_length == 0:
            raise UserError(
                f"weight {self.weight:g} of a set of {len(self.examples.labels)} images leaves nothing to train on; "
                "a weight above 0 that keeps at least one image is expected"
            )

    @property
    def epoch_length(self) -> int:
        """Number of examples per epoch."""
        return round(self.weight * len(self.examples.labels))


class TrainingFaces(Dataset):
    """Map-style dataset over several sets, indexed by (epoch, row).

    Args:
        sets: The sets and their weights.
        transform: Random change of each image, or None.
        seed: Seed of the transforms and of the images that a fractional weight picks.
        size: Side in pixels; of images of another size the central square is resized (bilinear, antialiased).
    """

    def __init__(
        self, sets: Sequence[WeightedSet], transform: Transform | None = None, seed: int = 0, size: int = 112
    ) -> None:
        self.sets, self.transform, self.seed, self.size = list(sets), transform, seed, size
        self.caches: Sequence[DecodedCache] = []
        self._row_ends = np.cumsum([s.epoch_length for s in self.sets])
        self._label_starts = np.cumsum([0] + [s.examples.num_classes for s in self.sets])

    @property
    def row_ends(self) -> list[int]:
        """Number of rows of the first set, of the first two, and so on; rows are numbered in the order of the sets."""
        return self._row_ends.tolist()

    @property
    def num_classes(self) -> int:
        """Number of identities of all sets together."""
        return int(self._label_starts[-1])

    def plan_caches(self, choice: CacheChoice, given: Path | None, out: Path, num_reads: float) -> CachePlan:
        """Decide whether decoded faces are cached; see `decoded_cache.plan_caches`.

        Args:
            choice: cache, fly or auto.
            given: Folder of the caches, which may be shared by runs; None: `decoded` in the output, until its end.
            out: Output folder.
            num_reads: Number of times that an image is read.
        """
        folder = given or out / "decoded"

        def build() -> list[DecodedCache]:
            return [DecodedCache(folder, s.examples.content(), len(s.examples.labels), self.size) for s in self.sets]

        return replace(plan_caches(build, choice, num_reads), scratch=folder if given is None else None)

    def use(self, plan: CachePlan, processes: Processes) -> None:
        """Log what a plan says, and read faces from its caches if it says so; faces they lack are put into them.

        A collective: all processes do what the plan of the first one says.

        Raises:
            UserError: A cache cannot be written.
        """
        is_used, reason = processes.broadcast((plan.is_used, plan.reason))
        log.info(reason)
        problem = ""
        try:
            self.caches = [cache.open() for cache in plan.caches] if is_used else []
        except UserError as error:
            problem = str(error)
        processes.raise_in_all(problem)

    def __len__(self) -> int:
        """Number of examples per epoch."""
        return int(self._row_ends[-1])

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        """Return one example.

        Args:
            item: Epoch and row in [0, len(self)).

        Returns:
            (size, size, 3) uint8 RGB and the label.

        Raises:
            UserError: The image is unreadable.
        """
        epoch, row = int(item[0]), int(item[1])
        number, index = self.locate(epoch, row)
        pixels_u8 = self.face(number, index)
        if self.transform is not None:
            pixels_u8 = self.transform(pixels_u8, self.generator(epoch, row))
        return torch.tensor(pixels_u8), self.label(number, index)

    def face(self, number: int, index: int) -> np.ndarray:
        """Return image `index` of set `number` before any random change, (size, size, 3) uint8 RGB.

        Raises:
            UserError: The image is unreadable.
        """
        if self.caches and (cached := self.caches[number].read(index)) is not None:
            return cached
        examples = self.sets[number].examples
        try:
            pixels_u8 = resize_u8(fit_square(decode_image(examples.read(index))), self.size)
        except UnreadableImage as error:
            name = examples.name_of(index)
            raise UserError(f"{name} is unreadable: {error}; `facesyn pack` leaves such images out") from error
        if self.caches:
            self.caches[number].write(index, pixels_u8)
        return pixels_u8

    def label(self, number: int, index: int) -> int:
        """Return the label of image `index` of set `number` among the identities of all sets."""
        return int(self._label_starts[number] + self.sets[number].examples.labels[index])

    def generator(self, epoch: int, row: int) -> np.random.Generator:
        """Return the generator of the random changes of one example."""
        return np.random.default_rng([self.seed, epoch, row])

    def locate(self, epoch: int, row: int) -> tuple[int, int]:
        """Return the number of the set and the index of the image that a row of an epoch shows."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self._row_ends, row, side="right"))
        place = row - int(self._row_ends[number - 1] if number else 0)
        weighted = self.sets[number]
        count = len(weighted.examples.labels)
        whole = weighted.epoch_length // count * count
        if place < whole:
            return number, place % count
        return number, int(_shuffled(self.seed, epoch, number, count)[place - whole])


def rows_digest(rows: np.ndarray) -> str:
    """Return a digest of row numbers."""
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64)).hexdigest()


@lru_cache(maxsize=16)
def _shuffled(seed: int, epoch: int, number: int, count: int) -> np.ndarray:
    """Return the order in which a fractional weight picks the images of set `number`."""
    return np.random.default_rng([seed, epoch, number, 1]).permutation(count)
