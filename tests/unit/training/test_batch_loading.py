"""Groups arrive whole and in order, the same from any number of workers; an unreadable image is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facesyn_cli.data.datasets import TrainingFaces, WeightedSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.transforms import Composed, compose
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.training.batch_loading import load_groups, read_ahead


class _Set:
    num_classes = 3

    def __init__(self, bad: int | None = None) -> None:
        self.labels = np.array([0, 1, 2, 0])
        self.bad = bad

    def read(self, index: int) -> bytes:
        pixels_u8 = np.random.RandomState(index).randint(0, 256, (16, 16, 3), dtype=np.uint8)
        return b"no image" if index == self.bad else encode_png(pixels_u8)

    def name_of(self, index: int) -> str:
        return f"image {index}"


CPU = torch.device("cpu")
GROUPS = [[(0, 3), (0, 1)], [(0, 5), (1, 1)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_groups_hold_pixels_labels_and_the_weights_of_their_sets(workers):
    faces = _faces()
    groups = list(load_groups(faces, [1.0, 0.5], iter(GROUPS), workers, CPU))
    assert len(groups) == 2
    for (pixels_u8, labels, weights), items in zip(groups, GROUPS, strict=True):
        for place, item in enumerate(items):
            expected, label = faces[item]
            assert torch.equal(pixels_u8[place], expected)
            assert labels[place] == label
            assert weights[place] == (1.0 if item[1] < 4 else 0.5)


def test_epochs_see_different_changes_of_one_image():
    faces = _faces()
    changed = [not torch.equal(faces[0, row][0], faces[1, row][0]) for row in range(8)]
    assert any(changed)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_a_user_error(workers):
    faces = TrainingFaces([WeightedSet(_Set(bad=1))], None, 0, 16)
    with pytest.raises(UserError, match="image 1 is unreadable") as error:
        list(load_groups(faces, [1.0], iter([[(0, 0), (0, 1)]]), workers, CPU))
    assert "\n" not in str(error.value)


def test_on_a_device_whole_groups_are_changed_and_only_if_every_transform_can(monkeypatch):
    """The meta device is no CPU, and holds no pixels: what arrives is followed on the host."""
    seen = []

    def change_batch(self, images, drawn):
        seen.append(drawn)
        return images

    monkeypatch.setattr(Composed, "change_batch", change_batch)
    faces = _faces()
    groups = list(load_groups(faces, [1.0, 0.5], iter(GROUPS), 1, torch.device("meta")))
    assert [images.device.type for images, _, _ in groups] == ["meta"] * 2
    assert [labels.tolist() for _, labels, _ in groups] == [[0, 1], [4, 1]]
    assert seen == [[faces.transform.draw(16, faces.generator(*item)) for item in group] for group in GROUPS]
    faces.transform = Composed([lambda pixels_u8, generator: pixels_u8])
    assert len(list(load_groups(faces, [1.0, 0.5], iter(GROUPS), 1, torch.device("meta")))) == 2 == len(seen)


def _faces() -> TrainingFaces:
    flip = registry.configure("transform", {"name": "flip"})
    return TrainingFaces([WeightedSet(_Set()), WeightedSet(_Set())], compose([flip]), 7, 16)


def test_read_ahead_keeps_order_and_hands_errors_on():
    assert list(read_ahead(iter(range(1, 6)))) == [1, 2, 3, 4, 5]

    def broken():
        yield 1
        raise UserError("gone")

    items = read_ahead(broken())
    with pytest.raises(UserError, match="gone"):
        list(items)
