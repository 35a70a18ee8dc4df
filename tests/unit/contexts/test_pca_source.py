"""The source `pca`: directions distributed like known embeddings, the same wherever a run begins."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from facesyn_cli.contexts.source import Resources
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry


def people(count: int = 4000, size: int = 16) -> np.ndarray:
    """Unit rows with a mean and very different variances, in a rotated frame."""
    random = np.random.RandomState(0)
    frame = np.linalg.qr(random.standard_normal((size, size)))[0]
    rows = (0.5 + random.standard_normal((count, size)) * np.geomspace(1, 0.05, size)) @ frame
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pca(known: np.ndarray, seed: int = 0, batch_size: int = 32, people: list[str] | None = None, **settings):
    source = registry.build("contexts", registry.configure("contexts", {"name": "pca", **settings}))
    source.open(Resources(seed=seed, batch_size=batch_size, known=known, known_people=people,
                          known_embedder="sha256:abc"))
    return source


def first(source, start: int, num: int) -> np.ndarray:
    rows, expected = [], start
    for batch in source.candidates(start):
        assert batch.start == expected
        assert len(batch.vectors) == len(batch.origins) == len(batch.faces) == batch.stop - batch.start
        assert [o["candidate"] for o in batch.origins] == list(range(batch.start, batch.stop))
        rows.append(batch.vectors)
        expected = batch.stop
        if expected >= start + num:
            break
    return np.concatenate(rows)[:num]


def test_candidate_k_does_not_depend_on_the_start():
    known = people()
    whole = first(pca(known), 0, 2500)
    assert whole.dtype == np.float32 and whole.shape == (2500, 16)
    for start in (1, 1023, 1024, 2047):
        assert np.array_equal(first(pca(known), start, 400), whole[start : start + 400])
    assert np.array_equal(first(pca(known, batch_size=100), 0, 2500), whole)
    assert not np.array_equal(first(pca(known, seed=1), 0, 10), whole[:10])


def test_distributed_like_the_known():
    known = people()
    drawn = first(pca(known), 0, 16384).astype(np.float64)
    assert np.abs(np.linalg.norm(drawn, axis=1) - 1).max() < 1e-6
    # Normal vectors are made unit, which moves the moments a little; uniform directions would miss by 1 / 16 and more.
    assert np.abs(drawn.mean(axis=0) - known.mean(axis=0)).max() < 0.03
    assert np.abs(np.cov(drawn.T) - np.cov(known.T)).max() < 0.01
    assert np.abs(np.cov(known.T) - np.eye(16) / 16).max() > 0.04


def test_it_is_the_formula():
    known = people().astype(np.float64)
    source = pca(known.astype(np.float32), scale=0.7)
    variances, vectors = np.linalg.eigh(np.cov(known.T))
    root = vectors @ np.diag(np.sqrt(variances)) @ vectors.T
    assert np.allclose(root @ root, np.cov(known.T), atol=1e-12)
    digest = hashlib.sha256(known.astype(np.float32).tobytes()).hexdigest()
    normal = keyed_random("pca", 0, digest, 0).standard_normal((1024, 16))[5]
    expected = known.mean(axis=0) + 0.7 * root @ normal
    assert np.allclose(first(source, 5, 1)[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_alike_distributions_give_other_people():
    known = people()
    a, b = first(pca(known), 0, 100), first(pca(known[1:]), 0, 100)
    assert np.abs(a.mean(axis=0) - b.mean(axis=0)).max() < 0.15 and np.einsum("ij,ij->i", a, b).max() < 0.99


def test_few_components_stay_in_their_space():
    known = people()
    drawn = first(pca(known, components=3), 0, 500).astype(np.float64)
    variances, vectors = np.linalg.eigh(np.cov(known.astype(np.float64).T))
    mean = known.mean(axis=0, dtype=np.float64)
    space = np.linalg.qr(np.column_stack([vectors[:, -3:], mean]))[0]       # unit length keeps them in this space
    assert np.abs(drawn - drawn @ space @ space.T).max() < 1e-6


def test_the_recognizer_is_that_of_the_known():
    assert pca(people()).embedder == "sha256:abc"


@pytest.mark.parametrize(
    ("count", "components", "wrong"),
    [(1, None, "1 known embeddings are too few"), (8, 8, "8 known embeddings are too few for 8 components"),
     (100, 17, "17 components, but embeddings have 16")],
)
def test_what_does_not_go(count, components, wrong):
    with pytest.raises(UserError, match=wrong):
        pca(people(count), components=components)


def two_groups(rare: int = 60, frequent: int = 2000, size: int = 8) -> tuple[np.ndarray, list[str]]:
    """Unit rows around two means, one of them seldom, and some around a third; names say which."""
    random = np.random.RandomState(1)
    counts = {"a": frequent, "b": rare, "c": 100}
    rows = np.repeat(np.eye(size)[:3], list(counts.values()), axis=0)
    rows = rows + 0.1 * random.standard_normal(rows.shape)
    names = [f"{name}{number // 2}" for name, count in counts.items() for number in range(count)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), names


def test_groups_are_drawn_in_equal_parts_each_as_narrow_as_its_own_people():
    known, names = two_groups()
    drawn = first(pca(known, people=names, groups=["a*", "b*"]), 0, 2000)
    nearest = drawn[:, :3].argmax(axis=1)
    assert 0.45 < (nearest == 0).mean() < 0.55 and not (nearest == 2).any()
    for axis in (0, 1):
        assert drawn[nearest == axis, axis].mean() > 0.9
    plain = first(pca(known, people=names), 0, 2000)[:, :3].argmax(axis=1)
    assert (plain == 1).mean() < 0.15
    some = pca(known, people=names, groups=["a*"])
    assert np.array_equal(some._means[0], known[:2000].astype(np.float64).mean(axis=0))


def test_the_first_pattern_that_fits_has_a_person():
    known, names = two_groups()
    source = pca(known, people=names, groups=["b1*", "b*", "*"])
    rows = source._groups()
    assert [names[row] for row in rows["b1*"]] == [name for name in names if name.startswith("b1")]
    assert not set(rows["b1*"]) & set(rows["b*"]) and sum(map(len, rows.values())) == len(names)


@pytest.mark.parametrize(
    "names, groups, wrong",
    [(None, ["*"], "have no identity names"), (["a"] * 40, ["a", "b"], "0 known embeddings of group b are too few")],
)
def test_groups_without_people_are_refused(names, groups, wrong):
    with pytest.raises(UserError, match=wrong):
        pca(people(40), people=names, groups=groups)
