"""`photometric`: every variant follows from (seed, identity, sample, copy)."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.augmentations.photometric import variant_generator
from facesyn_cli.data.pixels import decode_image, encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import build, configure

PIXELS = np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8)


def entries(identity: str, *samples: str) -> list[ImageEntry]:
    return [ImageEntry(f"{identity}/{s}", identity, s, f"{identity}/{s}.png") for s in samples]


def rendered(identity: str, samples: list[str], seed: int = 0, **settings) -> dict[str, bytes]:
    augmentation = build("augmentation", configure("augmentation", {"name": "photometric", **settings}))
    found = augmentation.additions(identity, entries(identity, *samples), lambda e: encode_png(PIXELS), None, seed)
    return {a.sample + a.suffix: a.render() for a in found}


def test_names_and_growth():
    one, two = rendered("a", ["0", "1"]), rendered("a", ["0", "1"], copies=2)
    assert list(one) == ["2.png", "3.png"] and list(two) == ["2.png", "3.png", "4.png", "5.png"]
    assert all(two[name] == one[name] for name in one)


def test_identities_are_filled_up_to_a_number():
    assert list(rendered("a", ["0", "3"], fill_to=7)) == ["4.png", "5.png", "6.png", "7.png", "8.png"]
    assert rendered("a", ["0", "1"], fill_to=5) == dict(list(rendered("a", ["0", "1"], copies=2).items())[:3])
    assert rendered("a", ["0", "1"], fill_to=2) == rendered("a", ["0", "1"], fill_to=1) == {}
    with pytest.raises(ValueError, match="fill_to takes the place of copies"):
        configure("augmentation", {"name": "photometric", "fill_to": 5, "copies": 2})


def test_every_variant_is_another_and_always_the_same():
    seen = {**rendered("a", ["0", "1"], copies=2), **{f"b{k}": v for k, v in rendered("b", ["0"]).items()}}
    seen |= {f"seed{k}": v for k, v in rendered("a", ["0"], seed=1).items()}
    assert len(set(seen.values())) == len(seen) == 6
    assert encode_png(PIXELS) not in seen.values()
    assert rendered("a", ["0", "1"], copies=2) == rendered("a", ["0", "1"], copies=2)


def test_a_variant_does_not_depend_on_the_other_samples():
    alone, among = rendered("a", ["5"]), rendered("a", ["2", "5"])
    assert alone["6.png"] == among["7.png"]


def test_without_strength_pixels_stay():
    variant = rendered("a", ["0"], brightness=0, contrast=0, saturation=0)["1.png"]
    assert np.array_equal(decode_image(variant), PIXELS)


def test_generators_differ_in_every_argument():
    draws = {variant_generator(*args).random() for args in ((0, "a/0", 0), (1, "a/0", 0), (0, "a/1", 0), (0, "a/0", 1))}
    assert len(draws) == 4


def test_an_unreadable_sample_is_named():
    augmentation = build("augmentation", configure("augmentation", {"name": "photometric"}))
    addition = next(augmentation.additions("a", entries("a", "0"), lambda e: b"x", None, 0))
    with pytest.raises(UserError, match="cannot read the image a/0"):
        addition.render()
