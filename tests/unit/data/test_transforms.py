"""Transforms: exact where they are exact, distributions within bounds, and nothing random of their own."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from pydantic import ValidationError

from facesyn_cli.data.transforms import DrawnTransform, compose
from facesyn_cli.plugins.registry import build, configure

NAMES = ("flip", "random-resized-crop", "random-erasing", "low-resolution", "photometric")


def make(name: str, **settings):
    return build("transform", configure("transform", {"name": name, **settings}))


@pytest.fixture
def face() -> np.ndarray:
    """A picture without any symmetry, (112, 112, 3)."""
    y, x = np.mgrid[:112, :112]
    return np.stack([x * 2, y * 2, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_result_whatever_other_generators_do(name: str, face: np.ndarray):
    transform = make(name, p=1.0)
    results = []
    for state in range(3):
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        results.append(transform(face.copy(), np.random.default_rng(5)))
    assert all(np.array_equal(results[0], r) for r in results)
    assert results[0].dtype == np.uint8 and results[0].shape == face.shape
    assert not np.array_equal(results[0], transform(face, np.random.default_rng(6))) or name == "flip"


@pytest.mark.parametrize("name", NAMES)
def test_input_is_never_written_to(name: str, face: np.ndarray):
    before = face.copy()
    face.flags.writeable = False
    make(name, p=1.0)(face, np.random.default_rng(0))
    assert np.array_equal(face, before)


@pytest.mark.parametrize("name", NAMES)
def test_probability_zero_changes_nothing(name: str, face: np.ndarray):
    transform = make(name, p=0.0)
    assert all(np.array_equal(transform(face, np.random.default_rng(i)), face) for i in range(20))


def test_flip_mirrors_exactly_half_of_the_time(face: np.ndarray):
    flip = make("flip")
    generator = np.random.default_rng(0)
    flipped = 0
    for _ in range(2000):
        result = flip(face, generator)
        is_flipped = np.array_equal(result, face[:, ::-1])
        assert is_flipped or np.array_equal(result, face)
        flipped += is_flipped
    assert abs(flipped - 1000) < 5 * math.sqrt(500)


def test_crop_is_pil_bilinear_of_the_drawn_rectangle(face: np.ndarray):
    crop = make("random-resized-crop", p=1.0)
    for seed in range(10):
        generator = np.random.default_rng(seed)
        generator.random()
        top, left, height, width = crop.rectangle(112, 112, generator)
        part = Image.fromarray(face).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((112, 112), Image.Resampling.BILINEAR))
        assert np.array_equal(crop(face, np.random.default_rng(seed)), expected)


def test_crop_rectangles_have_the_published_distribution():
    crop = make("random-resized-crop")
    generator = np.random.default_rng(1)
    rectangles = np.array([crop.rectangle(112, 112, generator) for _ in range(20000)])
    top, left, height, width = rectangles.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 112).all() and (left + width <= 112).all()
    area, ratio = height * width / 112**2, width / height
    assert area.min() > 0.19 and area.max() <= 1
    assert ratio.min() > 0.73 and ratio.max() < 1.37
    assert np.mean(top == 0) < 0.5 and abs(np.mean(left / np.maximum(112 - width, 1)) - 0.5) < 0.02
    # Below area 0.75 every aspect ratio fits, so areas are uniform and log ratios symmetric there.
    inside = area < 0.7
    assert abs(np.mean(area[inside]) - 0.45) < 0.01
    assert abs(np.mean(np.log(ratio[inside]))) < 0.01
    assert abs(np.std(np.log(ratio[inside])) - math.log(4 / 3) * 2 / math.sqrt(12)) < 0.01


def test_crop_happens_with_probability_a_fifth(face: np.ndarray):
    crop = make("random-resized-crop")
    generator = np.random.default_rng(0)
    changed = sum(not np.array_equal(crop(face, generator), face) for _ in range(2000))
    assert abs(changed - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8)


def test_crop_without_a_fitting_rectangle_takes_the_central_one():
    crop = make("random-resized-crop", p=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.rectangle(100, 60, np.random.default_rng(0)) == (20, 0, 60, 60)
    assert crop.rectangle(60, 100, np.random.default_rng(0)) == (0, 20, 60, 60)


def test_crop_enlarges_smaller_images_to_the_asked_size():
    small = np.zeros((40, 50, 3), dtype=np.uint8)
    assert make("random-resized-crop", p=1.0, size=96)(small, np.random.default_rng(0)).shape == (96, 96, 3)


def test_erasing_fills_one_rectangle_of_the_asked_size(face: np.ndarray):
    erase = make("random-erasing", p=1.0, fill=77)
    for seed in range(50):
        result = erase(face, np.random.default_rng(seed))
        rows, columns = np.nonzero((result != face).any(axis=-1))
        box = result[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box == 77).mean() > 0.99
        assert 0.015 < box.shape[0] * box.shape[1] / 112**2 < 0.34
        assert 0.25 < box.shape[0] / box.shape[1] < 3.6


def test_low_resolution_is_pil_down_and_up(face: np.ndarray):
    shrink, bilinear = make("low-resolution", p=1.0, scale=(0.25, 0.5)), Image.Resampling.BILINEAR
    heights = set()
    for seed in range(60):
        height, width = shrink.draw(112, 80, np.random.default_rng(seed))
        assert 28 <= height <= 56 and 20 <= width <= 40 and abs(height / 112 - width / 80) < 0.02
        expected = Image.fromarray(face[:, :80]).resize((width, height), bilinear).resize((80, 112), bilinear)
        assert np.array_equal(shrink(face[:, :80], np.random.default_rng(seed)), np.asarray(expected))
        heights.add(height)
    assert len(heights) > 15
    assert np.array_equal(make("low-resolution", p=1.0, scale=(1.0, 1.0))(face, np.random.default_rng(0)), face)


def test_photometric_is_pil_enhancement(face: np.ndarray):
    for setting, enhance in (
        ("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)
    ):
        strengths = {"brightness": 0, "contrast": 0, "saturation": 0, setting: 0.5}
        generator = np.random.default_rng(3)
        generator.random()
        factor = 1 + 0.5 * generator.uniform(-1, 1, size=3)[["brightness", "contrast", "saturation"].index(setting)]
        expected = np.asarray(enhance(Image.fromarray(face)).enhance(factor))
        assert np.array_equal(make("photometric", p=1.0, **strengths)(face, np.random.default_rng(3)), expected)


def test_red_stays_red_through_all_of_them():
    red = np.zeros((112, 112, 3), dtype=np.uint8)
    red[..., 0] = 200
    result = compose([configure("transform", {"name": n}) for n in ("flip", "random-resized-crop", "photometric")])(
        red, np.random.default_rng(0)
    )
    assert (result[..., 0] > 80).all() and (result[..., 1:] < 60).all()


def test_composition_applies_in_order_with_one_generator(face: np.ndarray):
    configs = [configure("transform", {"name": n, "p": 1.0}) for n in ("flip", "random-erasing")]
    generator = np.random.default_rng(9)
    expected = make("random-erasing", p=1.0)(make("flip", p=1.0)(face, generator), generator)
    assert np.array_equal(compose(configs)(face, np.random.default_rng(9)), expected)
    assert compose([])(face, np.random.default_rng(9)) is face


def faces_of(count: int, side: int = 112) -> np.ndarray:
    """Smooth pictures with noise and a saturated corner, (count, side, side, 3) uint8."""
    random = np.random.default_rng(4)
    coarse = [Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    smooth = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in coarse])
    noisy = np.clip(smooth.astype(np.int16) + random.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    noisy[:, :20, :20], noisy[:, -20:, -20:] = 255, 0
    return noisy


@pytest.mark.parametrize(
    ("name", "gray_levels"),
    [("flip", 0), ("random-resized-crop", 1), ("random-erasing", 0), ("low-resolution", 2), ("photometric", 2)],
)
def test_a_batch_equals_its_images_one_by_one(name: str, gray_levels: int):
    """PIL rounds to whole gray levels between the directions of a resize; a product may round across a level."""
    transform, faces = compose([configure("transform", {"name": name, "p": 0.7})]), faces_of(40)
    expected = [transform(face, np.random.default_rng(i)) for i, face in enumerate(faces)]
    drawn = [transform.draw(112, np.random.default_rng(i)) for i in range(len(faces))]
    actual = transform.change_batch(torch.tensor(faces), drawn).numpy()
    difference = np.abs(actual.astype(int) - np.stack(expected))
    assert difference.max() <= gray_levels and actual.dtype == np.uint8
    changed = [own[0] is not None for own in drawn]
    assert 15 < sum(changed) < 40
    for i, is_changed in enumerate(changed):
        assert is_changed != np.array_equal(actual[i], faces[i]) or name == "random-erasing"
    assert (difference > 0).mean() < (0.4 if name in ("random-resized-crop", "low-resolution") else 1e-3)


@pytest.mark.parametrize(
    "rectangle", [(0, 0, 1, 1), (111, 0, 1, 112), (50, 60, 7, 3), (0, 0, 112, 112), (5, 0, 90, 111)]
)
def test_crops_of_a_batch_see_nothing_beyond_their_rectangle(rectangle: tuple[int, int, int, int]):
    crop, faces = make("random-resized-crop"), faces_of(3)
    actual = crop.change_batch(torch.tensor(faces), [rectangle] * 3).numpy()
    expected = np.stack([crop.change(face, rectangle) for face in faces])
    assert np.abs(actual.astype(int) - expected).max() <= 1


def test_composition_of_a_batch_draws_what_the_images_draw():
    configs = [configure("transform", {"name": n, "p": 0.5}) for n in ("flip", "random-resized-crop", "photometric")]
    transform, faces = compose(configs), faces_of(30)
    expected = np.stack([transform(face, np.random.default_rng(i)) for i, face in enumerate(faces)])
    drawn = [transform.draw(112, np.random.default_rng(i)) for i in range(len(faces))]
    difference = np.abs(transform.change_batch(torch.tensor(faces), drawn).numpy().astype(int) - expected)
    assert difference.max() <= 6, "one level of the crop, times factors of contrast, saturation and brightness"
    assert difference.mean() < 0.2


def test_a_list_has_a_batch_form_when_all_of_its_transforms_do():
    flip, crop = (configure("transform", {"name": name}) for name in ("flip", "random-resized-crop"))
    both = compose([flip, crop])
    assert both.has_batch_form(112) and compose([]).has_batch_form(112)
    assert not both.has_batch_form(160), "crops of 112 pixels do not fit images of 160"
    theirs = type(both)([*both.transforms, lambda pixels_u8, generator: pixels_u8])
    assert not theirs.has_batch_form(112) and not isinstance(theirs.transforms[-1], DrawnTransform)


@pytest.mark.parametrize(
    "settings",
    [{"name": "flip", "p": 1.5}, {"name": "random-resized-crop", "scale": (1.0, 0.2)},
     {"name": "random-erasing", "ratio": (0.0, 1.0)}, {"name": "photometric", "hue": 0.1},
     {"name": "low-resolution", "scale": (0.5, 1.5)}],
)
def test_wrong_settings(settings: dict):
    with pytest.raises(ValidationError):
        configure("transform", settings)
