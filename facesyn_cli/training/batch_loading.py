"""Loads batches ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor

from facesyn_cli.data.datasets import TrainingFaces
from facesyn_cli.data.ordered_pool import ordered_map

T = TypeVar("T")
Item = tuple[Tensor, int, float]


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items while a thread computes the next one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


def load_groups(
    faces: TrainingFaces, weights: Sequence[float], groups: Iterator[list[tuple[int, int]]], size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (N, side, side, 3) uint8 images, (N,) labels and (N,) weights of the loss, group by group.

    Threads rather than worker processes: decoding, resizing and reading release the interpreter's lock, and no process
    can be lost to a stop signal or to a fork beside a running GPU.

    Args:
        faces: What to load from.
        weights: Factor of the loss of each of its sets.
        groups: (epoch, row) of the images of each group.
        size: Number N of images of a group.
        workers: Threads that decode; 0 decodes in this one. The images do not depend on it.

    Raises:
        UserError: An image is missing or unreadable.
    """

    def load(item: tuple[int, int]) -> Item:
        pixels_u8, label = faces[item]
        return pixels_u8, label, weights[faces.locate(*item)[0]]

    ahead = max(8, -(-2 * size // max(workers, 1)))
    with closing(ordered_map(load, chain.from_iterable(groups), workers, ahead)) as items:
        while group := list(islice(items, size)):
            pixels_u8, labels, factors = zip(*group, strict=True)
            stacked = torch.stack(pixels_u8)
            stacked = stacked.pin_memory() if torch.cuda.is_available() else stacked
            yield stacked, torch.tensor(labels), torch.tensor(factors, dtype=torch.float32)
