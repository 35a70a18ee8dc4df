"""Loads batches ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from facesyn_cli.data.datasets import TrainingFaces
from facesyn_cli.data.ordered_pool import ordered_map
from facesyn_cli.data.transforms import Composed

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items while a thread computes the next one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


def load_groups(
    faces: TrainingFaces, weights: Sequence[float], groups: Iterable[list[tuple[int, int]]], workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the images, labels and weights of the loss of each group.

    Threads rather than worker processes: decoding, resizing and reading release the interpreter's lock, and no process
    can be lost to a stop signal or to a fork beside a running GPU. A thread takes a whole group and writes its images
    into one array. The random changes are drawn here; on a CPU they are applied here too, image by image with PIL,
    which is faster there than the batched form; on a GPU they are applied to the whole group, if every transform can.

    Args:
        faces: What to load from.
        weights: Factor of the loss of each of its sets.
        groups: (epoch, row) of the images of each group.
        workers: Threads that decode; 0 decodes in this one. The images do not depend on it.
        device: Where the groups are wanted.

    Returns:
        For every group (N, side, side, 3) uint8 images on the device; (N,) labels and (N,) weights on the host.

    Raises:
        UserError: An image is missing or unreadable.
    """
    transform = faces.transform
    is_batched = isinstance(transform, Composed) and device.type != "cpu" and transform.has_batch_form(faces.size)

    is_pinned = device.type == "cuda"  # then copies to the device do not make the host wait

    def load(group: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, list[list]]:
        images = torch.empty((len(group), faces.size, faces.size, 3), dtype=torch.uint8, pin_memory=is_pinned)
        pixels_u8, labels, factors, drawn = images.numpy(), [], [], []
        for place, (epoch, row) in enumerate(group):
            number, index = faces.locate(epoch, row)
            face = faces.face(number, index)
            if is_batched:
                drawn.append(transform.draw(faces.size, faces.generator(epoch, row)))
            elif transform is not None:
                face = transform(face, faces.generator(epoch, row))
            pixels_u8[place] = face
            labels.append(faces.label(number, index))
            factors.append(weights[number])
        factors = torch.tensor(factors, dtype=torch.float32, pin_memory=is_pinned)
        return images, torch.tensor(labels, pin_memory=is_pinned), factors, drawn

    with closing(ordered_map(load, groups, workers, ahead=2)) as loaded:
        for images, labels, factors, drawn in loaded:
            images = images.to(device, non_blocking=True)
            yield (transform.change_batch(images, drawn) if drawn else images), labels, factors
