"""The source `pca`: directions distributed like known embeddings, the same wherever a run begins."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from facesyn_cli.contexts.pca import group_means
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


def pca(known: np.ndarray, seed: int = 0, batch_size: int = 32, **settings):
    source = registry.build("contexts", registry.configure("contexts", {"name": "pca", **settings}))
    source.open(Resources(seed=seed, batch_size=batch_size, known=known, known_embedder="sha256:abc"))
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


def two_groups(rare: int = 60, frequent: int = 2000, size: int = 8) -> np.ndarray:
    """Unit rows around two means, one of them seldom."""
    random = np.random.RandomState(1)
    means = np.zeros((2, size))
    means[0, 0], means[1, 1] = 1, 1
    rows = np.repeat(means, (frequent, rare), axis=0) + 0.1 * random.standard_normal((frequent + rare, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_groups_are_drawn_in_equal_parts():
    known = two_groups()
    shares = [(first(pca(known, groups=groups), 0, 2000)[:, :2].argmax(axis=1) == 1).mean() for groups in (1, 2)]
    assert shares[0] < 0.1 and 0.45 < shares[1] < 0.55
    drawn = first(pca(known, groups=2), 0, 2000)
    for axis in (0, 1):  # each as narrow as its own group, not as the whole set
        own = drawn[drawn[:, :2].argmax(axis=1) == axis]
        assert own[:, axis].mean() > 0.9


def test_k_means_finds_means_that_do_not_move():
    known = np.concatenate([two_groups(), -two_groups(rare=30, frequent=40)]).astype(np.float64)
    means, own = group_means(known, 4, np.random.RandomState(3))
    distances = np.square(known[:, None] - means[None]).sum(axis=2)
    assert (distances.argmin(axis=1) == own).all() and set(own) == {0, 1, 2, 3}
    for group in range(4):
        assert np.allclose(known[own == group].mean(axis=0), means[group])


def test_more_groups_than_people_are_refused():
    with pytest.raises(UserError, match="30 groups, but there are 20 known embeddings"):
        pca(people(20), groups=30)
