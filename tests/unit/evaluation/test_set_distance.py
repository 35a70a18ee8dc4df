"""Distances of sets: closed forms, loops by hand, and data for which swapped arguments give another answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facesyn_cli.evaluation import nearest, set_distance
from facesyn_cli.evaluation.set_distance import (
    classifier_auc,
    frechet_distance,
    kernel_distance,
    neighborhoods,
    recall_of_each,
)


def whitened(n: int, size: int, seed: int) -> np.ndarray:
    """Rows with mean exactly 0 and covariance exactly 1."""
    rows = np.random.default_rng(seed).normal(size=(n, size))
    rows -= rows.mean(0)
    return rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T


def test_frechet_distance_of_known_normals():
    a, b = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 1.5])
    shift = np.array([3.0, 0.0, -1.0])
    real, generated = whitened(50, 3, 0) * a, whitened(80, 3, 1) * b + shift
    expected = np.square(shift).sum() + np.square(a - b).sum()       # diagonal covariances commute
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(generated, real) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    assert frechet_distance(real @ turn, generated @ turn) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(9, 14), (14, 9), (20, 20)])
def test_frechet_distance_of_fewer_rows_than_numbers_is_that_of_their_moments(n, m):
    generator = np.random.default_rng(0)
    real, generated = generator.normal(size=(n, 20)), generator.normal(size=(m, 20)) * 2 + 1
    expected = set_distance.frechet_of_moments(
        real.mean(0), np.cov(real.T), generated.mean(0), np.cov(generated.T))
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_by_hand():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(6, 4)), generator.normal(size=(5, 4)) + 1

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    expected = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    expected += np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    expected -= 2 * np.mean([k(x, y) for x in a for y in b])
    value, error = kernel_distance(a, b, seed=0)
    assert value == pytest.approx(expected, rel=1e-12) and np.isnan(error)


def test_kernel_distance_of_one_distribution_is_nothing(monkeypatch):
    monkeypatch.setattr(set_distance, "KERNEL_SUBSET", 100)
    rows = np.random.default_rng(0).normal(size=(3000, 8))
    value, error = kernel_distance(rows[:1500], rows[1500:], seed=0)
    assert abs(value) < 5 * error and error > 0
    far, _ = kernel_distance(rows[:1500], rows[1500:] + 0.5, seed=0)
    assert far > 20 * error


def by_hand(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    def radius(rows, i):
        return np.sort(np.linalg.norm(rows - rows[i], axis=1))[k]

    inside = np.array([[np.linalg.norm(y - x) <= radius(real, i) for y in generated] for i, x in enumerate(real)])
    recalled = [any(np.linalg.norm(x - y) <= radius(generated, j) for j, y in enumerate(generated)) for x in real]
    return {"precision": inside.any(0).mean(), "recall": np.mean(recalled), "density": inside.sum(0).mean() / k,
            "coverage": inside.any(1).mean()}


def test_neighborhoods_by_hand(monkeypatch):
    generator = np.random.default_rng(1)
    real, generated = generator.normal(size=(30, 3)), generator.normal(size=(25, 3)) * 0.7 + 0.4
    expected = by_hand(real, generated, 3)
    monkeypatch.setattr(nearest, "_PRODUCTS", 7 * 25)
    assert neighborhoods(real, generated, 3) == pytest.approx(expected)
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1


def test_swapped_arguments_are_noticed():
    """Real data everywhere, generated data in one corner: all of it is real, little of the real is there."""
    generator = np.random.default_rng(0)
    real = generator.uniform(-1, 1, size=(600, 2))
    generated = generator.uniform(0.4, 0.6, size=(600, 2))
    right, swapped = neighborhoods(real, generated, 3), neighborhoods(generated, real, 3)
    assert right["precision"] > 0.9 and right["recall"] < 0.1 and right["coverage"] < 0.2
    assert swapped["precision"] < 0.1 and swapped["recall"] > 0.9


def test_recall_of_each_part():
    generator = np.random.default_rng(0)
    real = generator.normal(size=(400, 2))
    wide, narrow = generator.normal(size=(40, 2)), generator.normal(size=(40, 2)) * 0.01
    found = recall_of_each(real, [wide, narrow], 3)
    assert found[0] > 0.8 and found[1] < 0.05
    assert found[0] == pytest.approx(neighborhoods(real, wide, 3)["recall"])


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_a_classifier_of_two_normal_distributions(distance):
    """Two normal distributions of one covariance, d apart: the area of the best classifier is Phi(d / sqrt 2)."""
    generator = np.random.default_rng(3)
    shape = generator.normal(size=(6, 6))
    a, b = generator.normal(size=(4000, 6)), generator.normal(size=(4000, 6))
    b[:, 0] += distance
    areas = classifier_auc(a @ shape, b @ shape, np.arange(4000), np.arange(4000), 0)
    expected = 0.5 * (1 + math.erf(distance / 2))
    assert len(areas) == 5 and areas.mean() == pytest.approx(expected, abs=0.02)


def test_a_classifier_does_not_know_the_people_that_it_is_tried_on():
    """People of one distribution, many images each: fitted to the people themselves it would tell them all apart."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(40, 30))
    rows = np.repeat(centers, 20, 0) + 0.01 * generator.normal(size=(800, 30))
    owner = np.repeat(np.arange(20), 20)
    assert 0.3 < classifier_auc(rows[:400], rows[400:], owner, owner, 0).mean() < 0.7
    alone = np.arange(400)  # every image a person of its own
    assert classifier_auc(rows[:400], rows[400:], alone, alone, 0).mean() > 0.95


def test_a_classifier_of_equal_rows_or_few_people():
    same, owner = np.ones((20, 4)), np.arange(20)
    assert (classifier_auc(same, same, owner, owner, 0) == 0.5).all()
    assert not len(classifier_auc(same, same, owner, owner % 4, 0))
