"""The source `mix`: mixtures of two different people, near or far, the same wherever a run begins."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.contexts.source import Resources
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

ANGLES = np.deg2rad([0, 10, 85, 165])  # of four people; cosines of all pairs differ


def mix(known: np.ndarray, people: list[str] | None = None, seed: int = 0, batch_size: int = 100, **settings):
    source = registry.build("contexts", registry.configure("contexts", {"name": "mix", **settings}))
    source.open(Resources(seed=seed, batch_size=batch_size, known=known.astype(np.float32), known_people=people,
                          known_embedder="sha256:abc"))
    return source


def first(source, start: int, num: int) -> np.ndarray:
    rows, stop = [], start
    for batch in source.candidates(start):
        rows.append(batch.vectors)
        stop = batch.stop
        if stop >= start + num:
            return np.concatenate(rows)[:num]


def angles_of(rows: np.ndarray) -> np.ndarray:
    return np.round(np.rad2deg(np.arctan2(rows[:, 1], rows[:, 0])), 2)


def circle() -> np.ndarray:
    return np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def test_all_pairs_of_different_people_are_mixed():
    rows = first(mix(circle()), 0, 2000)
    assert rows.dtype == np.float32 and np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    found, counts = np.unique(angles_of(rows), return_counts=True)
    np.testing.assert_allclose(found, [5, 42.5, 47.5, 82.5, 87.5, 125], atol=0.02)  # halfway: of 0+10, 0+85, 10+85, ...
    assert counts.min() > 250  # 333 of each are expected


def test_close_and_far_pairs():
    close, far = (np.unique(angles_of(first(mix(circle(), pair=pair), 0, 500))) for pair in ("close", "far"))
    np.testing.assert_allclose(close, [5, 47.5, 125], atol=0.02)    # 0 and 10 with each other, 85 with 10, 165 with 85
    np.testing.assert_allclose(far, [42.5, 82.5, 87.5], atol=0.02)  # 85 with 0, 0 and 165 with each other, 10 with 165


def test_the_weight_is_that_of_the_first_person():
    known = circle()[[0, 2]]
    rows = first(mix(known, weight=0.8), 0, 200)
    expected = [(a * known[0] + b * known[1]) for a, b in ((0.8, 0.2), (0.2, 0.8))]
    expected = sorted(np.round(np.rad2deg(np.arctan2(v[1], v[0])), 2) for v in expected)
    np.testing.assert_allclose(np.unique(angles_of(rows)), expected, atol=0.02)


def test_photos_of_one_person_are_averaged():
    photos = np.deg2rad([-20, 20, 90])
    known = np.stack([np.cos(photos), np.sin(photos)], axis=1)
    rows = first(mix(known, ["a", "a", "b"]), 0, 50)
    np.testing.assert_allclose(angles_of(rows), 45, atol=0.02)


def test_candidate_k_does_not_depend_on_the_start():
    known = np.random.RandomState(1).standard_normal((40, 8))
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    whole = first(mix(known), 0, 2500)
    for start in (1, 1023, 2047):
        assert np.array_equal(first(mix(known, batch_size=32), start, 300), whole[start : start + 300])
    assert not np.array_equal(first(mix(known, seed=1), 0, 10), whole[:10])
    assert mix(known).embedder == "sha256:abc"


def test_one_person_cannot_be_mixed():
    with pytest.raises(UserError, match="show 1 people"):
        mix(circle(), ["a"] * 4)
