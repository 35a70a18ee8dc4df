"""Variations of contexts: closed forms, and that everything follows from (seed, identity, sample)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facesyn_cli.artifacts.embedding_set import normalize
from facesyn_cli.diffusion.noise import image_noise
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

NAMES = ["a", "b", "c", "d"]


def vectors(num=4, size=32, seed=0):
    return normalize(np.random.default_rng(seed).standard_normal((num, size)))


def make(name, contexts=None, names=None, seed=0, **settings):
    contexts = vectors() if contexts is None else contexts
    variation = registry.build("context_variation", registry.configure("context_variation", {"name": name, **settings}))
    variation.open(contexts, names or NAMES[: len(contexts)], seed)
    return variation


def draws(variation, row, num=400):
    return np.stack([variation.context(row, k) for k in range(num)])


@pytest.mark.parametrize("name", ["idperturb", "gaussian"])
def test_contexts_have_length_one_and_follow_from_seed_identity_and_sample(name):
    one = draws(make(name), 1, 20)
    assert one.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)
    assert len(np.unique(one, axis=0)) == 20
    assert np.array_equal(one, draws(make(name), 1, 20))
    assert np.array_equal(make(name).context(1, 7), one[7])                      # whatever was drawn before
    assert not np.array_equal(one, draws(make(name, seed=1), 1, 20))
    assert not np.array_equal(one, draws(make(name, names=["a", "x", "c", "d"]), 1, 20))


def test_idperturb_cosines_are_uniform_above_the_bound():
    variation = make("idperturb", lowest=0.4, avoid_collisions=False)
    cosines = np.sort(draws(variation, 2, 1000) @ vectors()[2])
    assert cosines[0] > 0.4 - 1e-6 and cosines[-1] <= 1 + 1e-6
    uniform = 0.4 + 0.6 * (np.arange(1000) + 0.5) / 1000
    assert abs(cosines - uniform).max() / 0.6 < 1.63 / math.sqrt(1000)            # Kolmogorov-Smirnov, 1 %


def test_idperturb_directions_are_orthogonal_and_unbiased():
    v = vectors()[2].astype(np.float64)
    varied = draws(make("idperturb", avoid_collisions=False), 2, 1000).astype(np.float64)
    cosines = varied @ v
    u = (varied - cosines[:, None] * v) / np.sqrt(1 - cosines**2)[:, None]
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, atol=1e-3)
    covariance = u.T @ u / len(u)                                                 # (I - v v^T) / (E - 1)
    assert abs(covariance - (np.eye(32) - np.outer(v, v)) / 31).max() < 0.01
    assert np.linalg.norm(u.mean(axis=0)) < 3 / math.sqrt(1000)


def test_idperturb_collision_bound_is_half_the_angle_to_the_nearest():
    degrees = np.radians([0, 40, 100, 260])
    plane = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    variation = make("idperturb", plane, lowest=0.1)
    for row, half in ((0, 20), (1, 20), (2, 30), (3, 50)):
        assert variation.lowest(row) == pytest.approx(math.cos(math.radians(half)), abs=1e-6)
    assert make("idperturb", plane, lowest=0.99).lowest(2) == 0.99
    assert variation.needs_all_contexts and not make("idperturb", avoid_collisions=False).needs_all_contexts


def test_idperturb_bounds_do_not_depend_on_how_a_library_adds_up(monkeypatch):
    """Products of matrices have other last bits on another number of cores; contexts must not."""
    contexts = vectors(50, 512)
    plain = draws(make("idperturb", contexts, names=[str(k) for k in range(50)], lowest=0.1), 3, 5)

    class Sloppy(np.ndarray):
        def __matmul__(self, other):
            return np.asarray(self) @ np.asarray(other) * np.float32(1 + 3e-7)

    sloppy = make("idperturb", contexts.view(Sloppy), names=[str(k) for k in range(50)], lowest=0.1)
    assert np.array_equal(draws(sloppy, 3, 5), plain)


def test_idperturb_cones_do_not_overlap():
    base = vectors(1, 8)[0]
    crowd = normalize(base + 0.3 * np.random.default_rng(1).standard_normal((4, 8)))
    variation = make("idperturb", crowd, lowest=0.1)
    for row in range(4):
        cosines = draws(variation, row, 200) @ crowd.T                            # (200, 4)
        assert (cosines.argmax(axis=1) == row).all()
    free = make("idperturb", crowd, lowest=0.1, avoid_collisions=False)
    assert any((draws(free, row, 200) @ crowd.T).argmax(axis=1).tolist() != [row] * 200 for row in range(4))


def test_idperturb_leaves_twins_alone():
    twins = vectors()[[0, 0, 1]]
    np.testing.assert_allclose(draws(make("idperturb", twins), 0, 5), np.tile(twins[0], (5, 1)), atol=1e-3)


def test_gaussian_cosines_and_shares():
    contexts = vectors(2, 512)
    mixed = draws(make("gaussian", contexts), 0, 1000) @ contexts[0]
    for sigma, share in ((0.3, 0.4), (0.5, 0.4), (0.7, 0.2)):
        expected = 1 / math.sqrt(1 + sigma**2)
        one = draws(make("gaussian", contexts, sigmas=[sigma], shares=[1.0]), 0, 50) @ contexts[0]
        assert one.mean() == pytest.approx(expected, abs=0.005)
        near = abs(mixed - expected) < 0.03
        assert abs(near.mean() - share) < 4 * math.sqrt(share * (1 - share) / 1000)
    np.testing.assert_allclose(draws(make("gaussian", sigmas=[0.0], shares=[1.0]), 0, 3), vectors()[[0] * 3], atol=1e-6)


@pytest.mark.parametrize("bad", [{"sigmas": [0.3]}, {"shares": [0.5, 0.4, 0.4]}, {"sigmas": [-1, 0.5, 0.7]}])
def test_gaussian_refuses_what_is_no_distribution(bad):
    with pytest.raises(ValueError, match="sigmas"):
        make("gaussian", **bad)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_shared_noise_correlates_identities_within_a_style(share):
    variation, shape = make("shared-noise", share=share, styles=3), (40, 10, 10)
    assert not variation.varies_contexts
    assert np.array_equal(variation.context(1, 5), vectors()[1])

    def noise(row, sample):
        return variation.noise(image_noise(0, NAMES[row], sample, shape), row, sample).flatten().double()

    def correlation(x, y):
        return float(torch.corrcoef(torch.stack([x, y]))[0, 1])

    first = noise(0, 1)
    assert abs(first.mean()) < 0.06 and first.std() == pytest.approx(1, abs=0.06)
    assert correlation(first, noise(1, 1)) == pytest.approx(share, abs=0.06)
    assert correlation(first, noise(1, 4)) == pytest.approx(share, abs=0.06)      # 4 mod 3
    assert abs(correlation(first, noise(1, 2))) < 0.06
    assert torch.equal(first, noise(0, 1))


def test_given_contexts_join_by_key(tmp_path):
    from tiny_ldm import write_embedding_set

    keys = [f"{name}/{k}" for k in range(2) for name in NAMES]
    given = vectors(8, seed=5)
    folder = write_embedding_set(tmp_path / "given", keys, given)
    variation = make("given", path=folder)
    np.testing.assert_allclose(variation.context(2, 1), given[keys.index("c/1")], atol=1e-7)
    assert variation.open(vectors(), NAMES, 0)["variation"].path == str(folder)
    with pytest.raises(UserError, match="no context for image 'a/2'"):
        variation.context(0, 2)
    with pytest.raises(UserError, match="vectors of 32 numbers, the contexts have 16"):
        variation.open(vectors(size=16), NAMES, 0)
    with pytest.raises(UserError, match="variation.path=FOLDER"):
        make("given")
