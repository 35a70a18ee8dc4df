"""The sphere source: uniform, unit, and the same wherever a run begins."""

from __future__ import annotations

from itertools import islice

import numpy as np

from facesyn_cli.contexts.source import Resources
from facesyn_cli.plugins import registry


def sphere(seed: int = 0):
    source = registry.build("contexts", registry.configure("contexts", {"name": "sphere"}))
    source.open(Resources(seed=seed, batch_size=1024))
    return source


def first(source, start: int, num: int) -> np.ndarray:
    rows, expected = [], start
    for batch in islice(source.candidates(start), 1 + (num + 1023) // 1024):
        assert batch.start == expected
        assert len(batch.vectors) == len(batch.origins) == len(batch.faces) == batch.stop - batch.start
        assert [o["candidate"] for o in batch.origins] == list(range(batch.start, batch.stop))
        rows.append(batch.vectors)
        expected = batch.stop
    return np.concatenate(rows)[:num]


def test_candidate_k_does_not_depend_on_the_start():
    whole = first(sphere(), 0, 2500)
    assert whole.dtype == np.float32 and whole.shape == (2500, 512)
    for start in (1, 1023, 1024, 2047):
        assert np.array_equal(first(sphere(), start, 400), whole[start : start + 400])


def test_seeds_and_blocks_differ():
    a, b = first(sphere(), 0, 2048), first(sphere(seed=1), 0, 1024)
    assert abs(float(a[0] @ b[0])) < 0.3
    assert np.abs(a[:1024] @ a[1024:].T).max() < 0.4


def test_uniform_on_the_sphere():
    vectors = first(sphere(), 0, 4096).astype(np.float64)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    # A component has mean 0 and variance 1/512; a cosine between two of them has variance 1/512 as well.
    assert np.abs(vectors.mean(axis=0)).max() < 5 / np.sqrt(512 * 4096)
    assert abs(vectors.var() * 512 - 1) < 0.01
    cosines = (vectors[:2048] @ vectors[2048:].T).ravel()
    assert abs(cosines.std() * np.sqrt(512) - 1) < 0.01
