"""The training dataset: labels of several sets, weights, and examples that depend on (seed, epoch, row) only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.datasets import LabeledImages, LabeledRecords, TrainingFaces, WeightedSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.tfrecord_framing import encode_example, frame
from facesyn_cli.data.transforms import compose
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import configure


def picture(color: int, size: int = 16) -> np.ndarray:
    """A picture whose red channel says which it is."""
    pixels_u8 = np.tile(np.arange(size, dtype=np.uint8)[None, :, None], (size, 1, 3))
    pixels_u8[..., 0] = color
    return pixels_u8


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Identities a2, a10 (in natural order) with 3 and 2 pictures, red 0, 1, 2 and 10, 11."""
    for identity, colors in (("a2", (0, 1, 2)), ("a10", (10, 11))):
        (tmp_path / "images" / identity).mkdir(parents=True)
        for number, color in enumerate(colors):
            Image.fromarray(picture(color)).save(tmp_path / "images" / identity / f"{number}.png")
    return ImageSet.open(tmp_path / "images")


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    """Identities 0 and 1 with 1 and 2 records, red 100, 110, 111."""
    folder = tmp_path / "records"
    folder.mkdir()
    data, lines = b"", []
    for path, color in (("s/0/0", 100), ("s/1/0", 110), ("s/1/1", 111)):
        lines.append(f"{path}.jpg\t0\t{len(data)}\n")
        data += frame(encode_example(encode_png(picture(color))))
    (folder / "s-00000.tfrecord").write_bytes(data)
    (folder / "s.index").write_text("".join(lines))
    return RecordSet.open(folder)


def seen(faces: TrainingFaces, epoch: int) -> list[tuple[int, int]]:
    """Return (red, label) of all examples of an epoch."""
    examples = [faces[epoch, row] for row in range(len(faces))]
    return [(int(pixels_u8[0, 0, 0]), label) for pixels_u8, label in examples]


def stack(examples: list[tuple[torch.Tensor, int]]) -> np.ndarray:
    """Join the images of a batch as a plain array, which needs no shared memory between processes."""
    return np.stack([pixels_u8.numpy() for pixels_u8, _ in examples])


def test_identities_of_different_sets_stay_distinct(images: ImageSet, records: RecordSet):
    faces = TrainingFaces([WeightedSet(LabeledImages(images)), WeightedSet(LabeledRecords(records))], size=16)
    assert faces.num_classes == 4
    assert seen(faces, 0) == [(0, 0), (1, 0), (2, 0), (10, 1), (11, 1), (100, 2), (110, 3), (111, 3)]


def test_the_same_set_twice_is_two_sets(images: ImageSet):
    faces = TrainingFaces([WeightedSet(LabeledImages(images))] * 2, size=16)
    assert faces.num_classes == 4 and seen(faces, 0)[5] == (0, 2)


def test_example_is_u8_rgb_of_the_asked_size(images: ImageSet):
    pixels_u8, label = TrainingFaces([WeightedSet(LabeledImages(images))], size=24)[0, 4]
    assert pixels_u8.shape == (24, 24, 3) and pixels_u8.dtype == torch.uint8 and label == 1
    assert (pixels_u8[..., 0] == 11).all()


def test_whole_weights_repeat_every_image(images: ImageSet, records: RecordSet):
    sets = [WeightedSet(LabeledImages(images), 1), WeightedSet(LabeledRecords(records), 3)]
    faces = TrainingFaces(sets, size=16)
    assert len(faces) == 5 + 9
    counts = Counter(red for red, _ in seen(faces, 2))
    assert all(counts[red] == (3 if red >= 100 else 1) for red in (0, 1, 2, 10, 11, 100, 110, 111))


def test_fractional_weights_take_another_part_each_epoch(images: ImageSet):
    faces = TrainingFaces([WeightedSet(LabeledImages(images), 1.4)], seed=3, size=16)
    assert len(faces) == 7
    extras = []
    for epoch in range(40):
        counts = Counter(red for red, _ in seen(faces, epoch))
        assert set(counts) == {0, 1, 2, 10, 11} and max(counts.values()) == 2
        extras.append(frozenset(red for red, count in counts.items() if count == 2))
    assert all(len(extra) == 2 for extra in extras) and len(set(extras)) > 5


def test_examples_do_not_depend_on_workers_or_on_what_came_before(images: ImageSet):
    transform = compose([configure("transform", {"name": n, "p": 0.5}) for n in ("flip", "photometric")])
    faces = TrainingFaces([WeightedSet(LabeledImages(images), 2.0)], transform, seed=1, size=16)
    rows = [(epoch, row) for epoch in (0, 1) for row in range(len(faces))]
    straight = torch.stack([faces[item][0] for item in rows])
    backwards = torch.stack([faces[item][0] for item in reversed(rows)]).flip(0)
    batches = DataLoader(faces, sampler=rows, batch_size=3, num_workers=2, collate_fn=stack)
    loaded = torch.from_numpy(np.concatenate(list(batches)))
    assert torch.equal(straight, backwards) and torch.equal(straight, loaded)
    half = len(faces)
    assert not torch.equal(straight[:half], straight[half:])                 # another epoch, other changes
    assert not torch.equal(straight[:5], straight[5:10])                     # a repeated image is changed anew
    other = TrainingFaces(faces.sets, transform, seed=2, size=16)
    assert not torch.equal(straight, torch.stack([other[item][0] for item in rows]))


def test_some_rows_keep_the_labels_of_the_whole_set(images: ImageSet, records: RecordSet):
    faces = TrainingFaces(
        [WeightedSet(LabeledImages(images, np.array([4, 1]))), WeightedSet(LabeledRecords(records, np.array([2])))],
        size=16,
    )
    assert seen(faces, 0) == [(11, 1), (1, 0), (111, 3)] and faces.num_classes == 4


def test_the_central_square_of_a_wide_image_is_taken(tmp_path: Path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = (200, 100, 50)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(encode_png(wide))
    pixels_u8, _ = TrainingFaces([WeightedSet(LabeledImages(ImageSet.open(tmp_path)))], size=10)[0, 0]
    assert (pixels_u8 == torch.tensor([200, 100, 50])).all()


@pytest.mark.parametrize("weight", [0, -1, 0.01, float("nan"), float("inf")])
def test_weights_that_leave_nothing_are_refused(images: ImageSet, weight: float):
    with pytest.raises(UserError, match="weight .* of a set of 5 images"):
        WeightedSet(LabeledImages(images), weight)


def test_an_unreadable_image_is_named(images: ImageSet):
    (images.path / "a2" / "1.png").write_bytes(b"no image")
    faces = TrainingFaces([WeightedSet(LabeledImages(images))], size=16)
    with pytest.raises(UserError, match="a2/1.png in .* is unreadable"):
        faces[0, 1]


def test_rows_outside_are_refused(images: ImageSet):
    faces = TrainingFaces([WeightedSet(LabeledImages(images))], size=16)
    for row in (-1, 5):
        with pytest.raises(IndexError):
            faces[0, row]
