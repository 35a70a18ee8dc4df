"""Filters against a naive loop in exact arithmetic, whatever the block size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from facesyn_cli.contexts import cosine, unique
from facesyn_cli.contexts.source import Resources
from facesyn_cli.plugins import registry


def crowd(num: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """Return unit vectors around a few directions, so that many cosines are high."""
    random = np.random.RandomState(seed)
    centers = random.standard_normal((12, size))
    vectors = centers[random.randint(12, size=num)] + 0.8 * random.standard_normal((num, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact(u: np.ndarray, v: np.ndarray) -> Fraction:
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(u, v, strict=True)), Fraction(0))


def is_near(u: np.ndarray, v: np.ndarray, r: float) -> bool:
    """Fractions decide; float64 only spares them where it is far from r."""
    rough = float(u.astype(np.float64) @ v.astype(np.float64))
    return rough >= r if abs(rough - r) > 1e-9 else float(exact(u, v)) >= r


def naive_unique(vectors: np.ndarray, r: float) -> list[int]:
    kept: list[int] = []
    for i, vector in enumerate(vectors):
        if not any(is_near(vector, vectors[j], r) for j in kept):
            kept.append(i)
    return kept


def run(name: str, vectors: np.ndarray, cuts: list[int], known: np.ndarray | None = None, **settings) -> list[int]:
    made = registry.build("context_filter", registry.configure("context_filter", {"name": name, **settings}))
    made.open(Resources(known=known))
    kept, start = [], 0
    for stop in [*cuts, len(vectors)]:
        kept += [start + int(i) for i in np.flatnonzero(made.select(vectors[start:stop]))]
        start = stop
    return kept


@pytest.mark.parametrize("r", [-0.2, 0.1, 0.3, 0.7])
@pytest.mark.parametrize(("block", "bank"), [(1, 1), (7, 5), (64, 4096), (1024, 16)])
def test_unique_is_the_naive_greedy_order(monkeypatch, r, block, bank):
    monkeypatch.setattr(unique, "BLOCK_ROWS", block)
    monkeypatch.setattr(cosine, "BANK_ROWS", bank)
    vectors = crowd(200)
    expected = naive_unique(vectors, r)
    assert 1 < len(expected) < 200
    assert run("unique", vectors, [], r=r) == expected
    assert run("unique", vectors, [1, 2, 50, 50, 173], r=r) == expected


def test_unique_at_the_very_threshold(monkeypatch):
    """r set to a cosine that occurs: equal means same person, one float64 step above means another one."""
    vectors = crowd(120, size=512)
    one_higher = 0
    for i, j in [(0, 5), (3, 40), (17, 90), (50, 51)]:
        r = float(exact(vectors[i], vectors[j]))
        pair = vectors[[i, j]]
        assert run("unique", pair, [], r=r) == [0]
        assert run("unique", pair, [1], r=r) == [0]
        assert run("unique", pair, [], r=np.nextafter(r, 1)) == [0, 1]
        one_higher += float(pair[0] @ pair[1]) != r
        for block in (1, 8, 1024):
            monkeypatch.setattr(unique, "BLOCK_ROWS", block)
            assert run("unique", vectors, [], r=r) == naive_unique(vectors, r)
    assert one_higher  # float32 products are off here, so the exact pass is what makes the answers above right


def test_unique_restored_goes_on_as_if_never_stopped():
    vectors = crowd(150)
    whole = run("unique", vectors, [], r=0.3)
    resumed = registry.build("context_filter", registry.configure("context_filter", {"name": "unique"}))
    first = [i for i in whole if i < 60]
    resumed.restore(vectors[first[:3]])
    resumed.restore(vectors[first[3:]])
    assert first + [60 + int(i) for i in np.flatnonzero(resumed.select(vectors[60:]))] == whole


def test_unique_keeps_mutually_different_and_maximal():
    vectors = crowd(400, seed=3)
    kept = run("unique", vectors, [], r=0.4)
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    among = cosines[np.ix_(kept, kept)] - np.eye(len(kept))
    assert among.max() < 0.4
    for lost in set(range(400)) - set(kept):
        assert cosines[lost, [k for k in kept if k < lost]].max() >= 0.4


@pytest.mark.parametrize("bank", [1, 3, 4096])
def test_novel_is_the_naive_rule(monkeypatch, bank):
    monkeypatch.setattr(cosine, "BANK_ROWS", bank)
    vectors, known = crowd(100), crowd(9, seed=5)
    r = float(exact(vectors[20], known[4]))
    expected = [i for i, v in enumerate(vectors) if not any(is_near(v, k, r) for k in known)]
    assert 20 not in expected and 0 < len(expected) < 100
    assert run("novel", vectors, [33, 34], known=known, r=r) == expected
    assert run("novel", vectors, [], known=known[:0], r=r) == list(range(100))


@pytest.mark.parametrize("name", ["unique", "novel"])
@pytest.mark.parametrize("r", [1.5, -2, "near"])
def test_r_is_a_cosine(name, r):
    with pytest.raises(ValidationError):
        registry.configure("context_filter", {"name": name, "r": r})
