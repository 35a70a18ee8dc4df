"""The inputs of `pack`, and the order of their images in the packed set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet, natural_key
from facesyn_cli.artifacts.names import numbered
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class PackItem:
    """One image to pack.

    Args:
        identity: Its identity.
        sample: Its sample name.
        file_name: Name of the file with its suffix, as it sorted where it came from.
        source: Number of the input.
        place: Number of the image within its input.
    """

    identity: str
    sample: str
    file_name: str
    source: int
    place: int


@dataclass(frozen=True)
class PackSource:
    """An input of `pack`: an image set or a packed set.

    Args:
        items: Yields (identity, sample, file name) of every image, in the order of their places.
        read: Returns the encoded image at a place; raises UnreadableImage when only this one is lost.
        parent: Returns this input for a header.
        left_out: Content that is not used: reason -> count.
    """

    items: Callable[[], Iterator[tuple[str, str, str]]]
    read: Callable[[int], bytes]
    parent: Callable[[], Parent]
    left_out: Mapping[str, int]


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
        return _of_records(RecordSet.open(path, None if source_format == "auto" else source_format))
    images = ImageSet.open(path)
    warn_of_unclear_identities(images)
    return _of_images(images)


def _of_records(records: RecordSet) -> PackSource:
    def items() -> Iterator[tuple[str, str, str]]:
        return ((identity, sample, f"{sample}.jpg") for identity, sample in records.keys())

    return PackSource(items, records.read, records.parent, records.left_out)


def _of_images(images: ImageSet) -> PackSource:
    def items() -> Iterator[tuple[str, str, str]]:
        return ((entry.identity, entry.sample, entry.location.rpartition("/")[2]) for entry in images.entries)

    def read(place: int) -> bytes:
        try:
            return images.read(images.entries[place])
        except UserError as error:
            raise UnreadableImage(str(error)) from error

    return PackSource(items, read, images.parent, images.left_out)


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
    """Number later images of the same name: published indexes may hold `a.jpg` and `a.png`."""
    taken: set[str] = set()
    samples = [numbered(item.sample, taken) for item in group]
    return [item if item.sample == sample else replace(item, sample=sample)
            for item, sample in zip(group, samples, strict=True)]
