"""Cutting a set to a number of images."""

from __future__ import annotations

import pytest

from facesyn_cli.data.image_cut import first_images, level, random_images

GROUPS = {"a": list(range(5)), "b": list(range(2)), "c": list(range(9)), "d": list(range(6))}


@pytest.mark.parametrize(
    ("counts", "total", "kept"),
    [
        ([4, 4, 4], 12, [4, 4, 4]), ([4, 4, 4], 9, [3, 3, 3]), ([4, 4, 4], 10, [4, 3, 3]), ([4, 4, 4], 2, [1, 1, 0]),
        ([1, 9, 5], 8, [1, 4, 3]), ([1, 9, 5], 7, [1, 3, 3]), ([5, 2, 9, 6], 22, [5, 2, 9, 6]), ([3], 0, [0]),
    ],
)
def test_the_largest_lose_first(counts, total, kept) -> None:
    assert level(counts, total) == kept


def test_totals_that_do_not_exist_are_refused() -> None:
    for total in (-1, 13):
        with pytest.raises(ValueError, match="from 0 to 12"):
            level([4, 4, 4], total)


def test_first_images_are_those_that_a_smaller_set_would_have() -> None:
    assert first_images(GROUPS, 2, 6) == {"a": [0, 1, 2, 3], "b": [0, 1]}
    grown = {name: [*images, 98, 99] for name, images in GROUPS.items()} | {"e": [0]}
    assert first_images(grown, 2, 4) == first_images(GROUPS, 2, 4)
    with pytest.raises(ValueError, match="5 identities are wanted, there are 4"):
        first_images(GROUPS, 5, 6)
    with pytest.raises(ValueError):
        first_images(GROUPS, 2, 8)


def test_random_images_depend_on_seed_and_names_only() -> None:
    groups = {f"p{i}": list(range(12)) for i in range(30)}
    chosen = random_images(groups, 10, 60, seed=1)
    assert len(chosen) == 10 and all(len(images) == 6 for images in chosen.values())
    assert all(images == sorted(set(images)) for images in chosen.values())
    assert chosen == random_images(dict(reversed(groups.items())), 10, 60, seed=1)
    other = random_images(groups, 10, 60, seed=2)
    assert set(other) != set(chosen)
    shared = set(other) & set(chosen)
    assert any(other[name] != chosen[name] for name in shared)
    counts = [0] * 12
    for seed in range(40):
        for images in random_images(groups, 10, 60, seed).values():
            for image in images:
                counts[image] += 1
    assert min(counts) > 140  # 200 are expected of each place, with a deviation of about 10


def test_identities_with_enough_images_come_first_then_the_largest() -> None:
    for seed in range(5):
        assert {k: len(v) for k, v in random_images(GROUPS, 3, 12, seed).items()} == {"a": 4, "c": 4, "d": 4}
        assert {k: len(v) for k, v in random_images(GROUPS, 2, 14, seed).items()} == {"c": 8, "d": 6}
        assert {k: len(v) for k, v in random_images(GROUPS, None, 21, seed).items()} == {"a": 5, "b": 2, "c": 8, "d": 6}
    with pytest.raises(ValueError, match="5 identities are wanted"):
        random_images(GROUPS, 5, 6, 0)
    with pytest.raises(ValueError, match="16 images are wanted, 2 identities have 15"):
        random_images(GROUPS, 2, 16, 0)
