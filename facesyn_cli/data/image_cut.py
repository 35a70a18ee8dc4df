"""Chooses the images of a set that is cut to a number of images and of identities.

With c_i images of identity i, every identity keeps min(c_i, m) images, with the largest m whose sum does not exceed the
requested number; the first identities with more images keep one more, until the number is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def level(counts: Sequence[int], total: int) -> list[int]:
    """Return how many images each identity keeps.

    Args:
        counts: How many it has.
        total: How many all of them keep together, from 0 to the sum of `counts`.
    """
    if not 0 <= total <= sum(counts):
        raise ValueError(f"total must be from 0 to {sum(counts)}, got {total}")
    low, high = 0, max(counts, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= total:
            low = middle
        else:
            high = middle - 1
    kept = [min(count, low) for count in counts]
    left = total - sum(kept)
    for number, count in enumerate(counts):
        if left and count > low:
            kept[number] += 1
            left -= 1
    return kept


def first_images(groups: dict[str, Sequence[T]], identities: int, images: int) -> dict[str, list[T]]:
    """Return the first images of the first identities.

    Args:
        groups: The images of each identity, in order.
        identities: How many identities stay.
        images: How many images stay, of all of them.

    Raises:
        ValueError: There are not so many.
    """
    names = list(groups)[:identities]
    if len(names) < identities:
        raise ValueError(f"{identities} identities are wanted, there are {len(names)}")
    kept = level([len(groups[name]) for name in names], images)
    return {name: list(groups[name][:number]) for name, number in zip(names, kept, strict=True) if number}


def random_images(
    groups: dict[str, Sequence[T]], identities: int | None, images: int, seed: int
) -> dict[str, list[T]]:
    """Return random images of random identities; each identity and each of its images as likely as the next.

    Identities that have as many images as they are to keep come first; where they do not suffice, the largest of the
    others follow. Identities and images keep their order.

    Args:
        groups: The images of each identity, in order.
        identities: How many identities stay; None: all.
        images: How many images stay, of all of them.
        seed: Another seed, another choice.

    Raises:
        ValueError: There are not so many.
    """
    shuffled = sorted(groups, key=lambda name: _draw(seed, name))
    if identities is not None:
        if len(shuffled) < identities:
            raise ValueError(f"{identities} identities are wanted, there are {len(shuffled)}")
        enough = -(-images // identities)
        shuffled.sort(key=lambda name: -min(len(groups[name]), enough))
        shuffled = shuffled[:identities]
    counts = [len(groups[name]) for name in shuffled]
    if sum(counts) < images:
        raise ValueError(f"{images} images are wanted, {len(counts)} identities have {sum(counts)}")
    kept = dict(zip(shuffled, level(counts, images), strict=True))
    chosen = {}
    for name, entries in groups.items():
        number = kept.get(name, 0)
        if number:
            rows = np.random.default_rng(_draw(seed, name)).permutation(len(entries))[:number]
            chosen[name] = [entries[row] for row in sorted(rows)]
    return chosen


def _draw(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8], "little")
