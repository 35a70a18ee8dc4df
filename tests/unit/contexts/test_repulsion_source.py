"""The source `repulsion`: people pushed apart inside the distribution of known embeddings."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from facesyn_cli.contexts import repulsion
from facesyn_cli.contexts.source import Resources
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry


def circle(size: int, count: int = 2000) -> np.ndarray:
    """Return directions of no preference."""
    rows = np.random.RandomState(1).standard_normal((count, size))
    rows = np.concatenate([rows, -rows])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def faces(count: int = 600, size: int = 24) -> np.ndarray:
    """Return unit rows with a mean and very different variances."""
    rows = 0.15 + np.random.RandomState(0).standard_normal((count, size)) * np.geomspace(1, 0.2, size)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def opened(known: np.ndarray, seed: int = 0, batch_size: int = 32, names: list[str] | None = None, **settings):
    source = registry.build("contexts", registry.configure("contexts", {"name": "repulsion", **settings}))
    source.open(Resources(seed=seed, batch_size=batch_size, known=known, known_people=names,
                          known_embedder="sha256:abc"))
    return source


def rows(source, count: int, start: int = 0) -> np.ndarray:
    found: list[np.ndarray] = []
    for batch in source.candidates(start):
        found.append(batch.vectors)
        if sum(map(len, found)) >= count:
            return np.concatenate(found)[:count]
    raise AssertionError("the source ended")


@pytest.mark.parametrize(("size", "people"), [(2, 3), (3, 4), (5, 6)])
def test_as_many_as_a_simplex_has_corners_become_nearly_its_corners(size: int, people: int) -> None:
    """The highest cosine of n + 1 unit vectors of n dimensions is at least -1 / n, that of the regular simplex."""
    corner = -1 / size
    found = rows(opened(circle(size), together=people, r=corner + 0.012, novel=None, steps=2000), people)
    assert (found @ found.T)[np.triu_indices(people, 1)].max() < corner + 0.012
    with pytest.raises(UserError, match=rf"{people} people do not fit: after 50 steps [1-9]\d* pairs of them"):
        rows(opened(circle(size), together=people, r=corner - 0.05, novel=None, steps=50), people)


@pytest.mark.parametrize("together", [150, 40])
def test_nobody_is_near_another_or_a_known_person(together: int) -> None:
    known = faces()
    found = rows(opened(known, together=together, r=0.7, novel=0.8), 150)
    assert found.shape == (150, 24) and found.dtype == np.float32
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    drawn = rows(opened(known, together=together, r=1.0, novel=None), 150)       # before anybody is pushed
    for vectors, is_good in ((found, True), (drawn, False)):
        among = (vectors @ vectors.T)[np.triu_indices(150, 1)]
        assert (among.max() < 0.7) == is_good and ((vectors @ known.T).max() < 0.8) == is_good
    own = (found * drawn).sum(axis=1)
    assert np.median(own) > 0.9, "they move no farther than they must"


def test_people_who_were_packed_stay_and_the_next_ones_are_refused_where_there_is_no_room() -> None:
    settings = {"together": 2, "r": -0.4, "novel": None, "steps": 400}
    first = rows(opened(circle(2), **settings), 2)
    with pytest.raises(UserError, match="2 people do not fit beside 2 others"):
        rows(opened(circle(2), **settings), 4)
    assert (first[0] @ first[1]) < -0.4


def test_people_stay_on_the_shell_they_were_drawn_on() -> None:
    known = faces()
    sources = [opened(known, together=100, r=r, novel=novel) for r, novel in ((1.0, None), (0.7, 0.8))]
    found = [rows(source, 100).astype(np.float64) for source in sources]
    mean, axes, spread = sources[0].fits[0]
    normal = repulsion.keyed_random("repulsion", 0, sources[0].digest, 0).standard_normal((100, 24))
    wanted = np.linalg.norm(normal, axis=1)
    # mean + axes (spread z) = length c with |z| as drawn: one of these lengths is right, and gives the radius
    lengths = np.linspace(0.2, 4, 4000)[:, None]
    for vectors in found:
        coordinates, center = (vectors @ axes) / spread, (mean @ axes) / spread
        radii = np.stack([np.linalg.norm(lengths * row - center, axis=1) for row in coordinates])
        assert np.abs(radii - wanted[:, None]).min(axis=1).max() < 0.05
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_every_start_and_batch_size_gives_the_same_people() -> None:
    settings = {"together": 40, "r": 0.7, "novel": 0.8}
    whole = rows(opened(faces(), **settings), 100)
    assert np.array_equal(rows(opened(faces(), **settings), 67, start=33), whole[33:])
    assert np.array_equal(rows(opened(faces(), batch_size=7, **settings), 100), whole)
    assert not np.array_equal(rows(opened(faces(), seed=1, **settings), 100), whole)
    batches = list(islice(opened(faces(), **settings).candidates(30), 3))
    assert [o["candidate"] for batch in batches for o in batch.origins] == list(range(30, 80))


def test_all_rows_push_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"together": 70, "r": 0.7, "novel": 0.8}
    whole = rows(opened(faces(), **settings), 70)
    monkeypatch.setattr(repulsion, "_ROWS", 16)
    assert np.abs(rows(opened(faces(), **settings), 70) - whole).max() < 1e-5


def test_groups_and_components_are_those_of_pca() -> None:
    known = faces()
    names = [f"{'a' if k % 2 else 'b'}{k}" for k in range(len(known))]
    shifted = known.copy()
    shifted[1::2] += 2 * np.eye(24, dtype=np.float32)[3]
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    found = rows(opened(shifted, names=names, together=60, r=1.0, novel=None, groups=["a*", "b*"]), 60)
    assert 15 < (found[:, 3] > 0.5).sum() < 45
    flat = rows(opened(known, together=40, r=0.95, novel=None, components=3), 40).astype(np.float64)
    assert np.linalg.matrix_rank(flat, tol=1e-4) == 4                # three components and the mean


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"r": -1}, {"together": 1025}, {"novel": 2}):
        with pytest.raises(ValidationError):
            registry.configure("contexts", {"name": "repulsion", **wrong})
    with pytest.raises(UserError, match="too few"):
        opened(faces()[:1])
