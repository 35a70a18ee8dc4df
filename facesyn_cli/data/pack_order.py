"""What goes into a packed set, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet, natural_key
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class PackItem:
    """One image on its way into a set.

    Args:
        identity: Whose face it is.
        sample: Which image of that identity.
        file_name: Name of the file with its suffix, as it sorted where it came from.
        source: Number of the input.
        place: Number of the image within its input.
    """

    identity: str
    sample: str
    file_name: str
    source: int
    place: int


class PackSource(Protocol):
    """An input of `pack`: an image set or a packed set.

    Attributes:
        left_out: What it holds besides and is not used: reason -> how often.
    """

    left_out: Mapping[str, int]

    def items(self) -> Iterator[tuple[str, str, str]]:
        """Yield (identity, sample, file name) of every image, in the order of their places."""

    def read(self, place: int) -> bytes:
        """Return one encoded image; raise UnreadableImage when only this one is lost."""

    def parent(self) -> Parent:
        """Return this input for a header."""


class ImageSource:
    """An image set as an input."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.left_out = images, images.left_out
        self.parent = images.parent

    def items(self) -> Iterator[tuple[str, str, str]]:
        """Yield (identity, sample, file name) of every image."""
        for entry in self.images.entries:
            yield entry.identity, entry.sample, entry.location.rpartition("/")[2]

    def read(self, place: int) -> bytes:
        """Return one encoded image.

        Raises:
            UnreadableImage: Its file cannot be read.
        """
        try:
            return self.images.read(self.images.entries[place])
        except UserError as error:
            raise UnreadableImage(str(error)) from error


class RecordSource:
    """A packed set as an input."""

    def __init__(self, records: RecordSet) -> None:
        self.records = records
        self.read, self.parent, self.left_out = records.read, records.parent, records.left_out

    def items(self) -> Iterator[tuple[str, str, str]]:
        """Yield (identity, sample, file name) of every record."""
        for identity, sample in self.records.keys():
            yield identity, sample, f"{sample}.jpg"


def open_source(path: Path, source_format: str) -> PackSource:
    """Open one input.

    Args:
        path: Folder, zip or index file.
        source_format: `auto`: records where there are any, else images; `folder`: images; or the name of a
            record format.

    Raises:
        UserError: The input does not exist or is not of that format.
    """
    is_records = RecordSet.recognizes(path) if source_format == "auto" else source_format != "folder"
    if is_records:
        return RecordSource(RecordSet.open(path, None if source_format == "auto" else source_format))
    images = ImageSet.open(path)
    warn_of_unclear_identities(images)
    return ImageSource(images)


def pack_items(
    sources: list[PackSource], drop_first: bool = False, min_images: int = 1, shuffle_seed: int | None = None
) -> list[PackItem]:
    """Return all images to pack: identity by identity in natural order, samples in natural order.

    Identities of several inputs stay distinct: each name gets the number of its input in front (`2-alice`).

    Args:
        sources: The inputs.
        drop_first: Leave out the first image of every identity in string order, as the published
            converter does.
        min_images: Leave out identities with fewer images (after `drop_first`).
        shuffle_seed: Put the images in a random order that depends on nothing else; None: keep the order.

    Raises:
        UserError: Nothing is left to pack.
    """
    groups: dict[str, list[PackItem]] = {}
    for number, source in enumerate(sources):
        prefix = f"{number + 1}-" if len(sources) > 1 else ""
        for place, (identity, sample, file_name) in enumerate(source.items()):
            identity = prefix + identity
            groups.setdefault(identity, []).append(PackItem(identity, sample, file_name, number, place))
    listed = sum(map(len, groups.values()))
    if drop_first:
        # Differs from ADMIS tools/img2tfrecord.py: only images count, not every file of the folder, and an
        # identity that had one image leaves no class without images behind.
        groups = {name: _without_first(group) for name, group in groups.items()}
    items = []
    for name in sorted(groups, key=natural_key):
        if len(groups[name]) >= max(min_images, 1):
            items += sorted(_distinct(groups[name]), key=lambda item: natural_key(item.sample))
    if not items:
        raise UserError(
            f"nothing to pack: of {listed} images of {len(groups)} identities none is left after "
            f"drop_first={drop_first} and min_images={min_images}"
        )
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(len(items))
        items = [items[i] for i in order]
    return items


def _without_first(group: list[PackItem]) -> list[PackItem]:
    first = min(group, key=lambda item: item.file_name)
    return [item for item in group if item is not first]


def _distinct(group: list[PackItem]) -> list[PackItem]:
    """Published indexes may hold `a.jpg` and `a.png`: later ones get a number."""
    taken: set[str] = set()
    distinct = []
    for item in group:
        sample, count = item.sample, 1
        while sample in taken:
            count += 1
            sample = f"{item.sample}-{count}"
        taken.add(sample)
        same = sample == item.sample
        distinct.append(item if same else PackItem(item.identity, sample, item.file_name, item.source, item.place))
    return distinct
