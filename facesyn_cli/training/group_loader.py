"""Loads the images of one group after the other, decoded and changed by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from facesyn_cli.data.datasets import TrainingFaces
from facesyn_cli.errors import UserError

Item = tuple[Tensor, int, float]


def load_groups(
    faces: TrainingFaces, weights: Sequence[float], groups: Iterable[list[tuple[int, int]]], workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (N, size, size, 3) uint8 images, (N,) labels and (N,) weights of the loss, group by group.

    Args:
        faces: What to load from.
        weights: Factor of the loss of each of its sets.
        groups: (epoch, row) of the images of each group.
        workers: Processes that decode; 0 decodes in this one. The images do not depend on it.

    Raises:
        UserError: An image is gone or unreadable.
    """
    loader = DataLoader(
        _Items(faces, weights),
        batch_sampler=groups,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
    for group in loader:
        if isinstance(group, str):
            raise UserError(group)
        yield group


class _Items(Dataset):
    """Hands an error on as an item: raised in a worker it would arrive with the worker's traceback in it."""

    def __init__(self, faces: TrainingFaces, weights: Sequence[float]) -> None:
        self._faces, self._weights = faces, list(weights)

    def __getitem__(self, item: tuple[int, int]) -> Item | str:
        try:
            pixels_u8, label = self._faces[item]
        except UserError as error:
            return str(error)
        return pixels_u8, label, self._weights[self._faces.locate(*item)[0]]


def _collate(items: list[Item | str]) -> tuple[Tensor, Tensor, Tensor] | str:
    whole = [item for item in items if not isinstance(item, str)]
    if len(whole) < len(items):
        return next(item for item in items if isinstance(item, str))
    pixels_u8, labels, weights = zip(*whole, strict=True)
    return torch.stack(pixels_u8), torch.tensor(labels), torch.tensor(weights, dtype=torch.float32)


def _ignore_signals(worker: int) -> None:
    """Leave stop signals, which reach the whole process group, to the training process."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
