"""Genuine and impostor scores: against all pairs by hand, normal distributions, and swapped arguments."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
from made_embeddings import angle, labeled, people
from tolerance import rounding

from facesyn_cli.evaluation import score_counts
from facesyn_cli.evaluation.score_counts import (
    GRID,
    NUM_BINS,
    count,
    count_scores,
    discriminability,
    equal_error_rate,
    moments_of,
    non_match_at,
    threshold_at,
)

ALL = 10**9


def counts(*scores: float) -> np.ndarray:
    return count(np.array(scores, dtype=np.float32))


def all_pairs(rows) -> tuple[np.ndarray, np.ndarray]:
    """Genuine and impostor scores in float64, pair by pair."""
    scores = rows.vectors.astype(np.float64) @ rows.vectors.T.astype(np.float64)
    i, j = np.triu_indices(len(scores), 1)
    same = rows.owner[i] == rows.owner[j]
    return scores[i, j][same], scores[i, j][~same]


def test_counts_and_moments_are_those_of_all_pairs():
    rows = people(23, 5)
    found = count_scores(rows, ALL, seed=0)
    genuine, impostor = all_pairs(rows)
    assert found.num_genuine == 23 * 10 and found.num_impostor == 115 * 114 // 2 - 230
    assert found.genuine_exact and found.impostor_exact
    expected = genuine.mean(), genuine.var(), impostor.mean(), impostor.var()
    np.testing.assert_allclose(found.moments, expected, rtol=0, atol=rounding())  # float32 products
    for ours, scores in ((found.genuine, genuine), (found.impostor, impostor)):
        assert np.abs(np.cumsum(ours) - np.cumsum(count(scores))).max() <= 2  # a rounding may fall to either side
        assert moments_of(ours) == pytest.approx((scores.mean(), scores.var()), abs=1e-4)


def test_identities_of_any_size_and_order():
    rows = people(6, 4, seed=1)
    names = [rows.identities[owner] for owner in rows.owner]
    order = np.random.default_rng(0).permutation(len(names))[:-3]
    shuffled = type(rows).of([rows.keys[k] for k in order], [names[k] for k in order], rows.vectors[order])
    genuine, impostor = all_pairs(shuffled)
    found = count_scores(shuffled, ALL, seed=3)
    assert (found.num_genuine, found.num_impostor) == (len(genuine), len(impostor))
    assert found.moments[0] == pytest.approx(genuine.mean(), abs=1e-6)


def test_two_orthogonal_people():
    found = count_scores(labeled(angle(0, 0, 90, 90), "aabb"), ALL, seed=0)
    assert found.moments == pytest.approx((1, 0, 0, 0), abs=1e-7)
    assert equal_error_rate(found.genuine, found.impostor)[0] == 0
    assert found.genuine[-1] == 2 and found.impostor[10_000] == 4


def test_figures_by_hand():
    genuine, impostor = counts(0.2, 0.5, 0.6, 0.7), counts(0.1, 0.2, 0.3, 0.55)
    # at t in (0.3, 0.5]: FMR 1/4 (0.55), FNMR 1/4 (0.2)
    rate, at = equal_error_rate(genuine, impostor)
    assert rate == 0.25 and GRID[at] == pytest.approx(0.3001)
    many = counts(*np.linspace(-0.5, 0.499, 1000))
    rate, at = non_match_at(counts(0.4, 0.48, 0.4951, 0.6), many, 1e-2)   # the 10 highest impostors are >= 0.490
    assert rate == 0.5 and GRID[at] == pytest.approx(0.4891)
    assert threshold_at(many, 1e-2) == pytest.approx(0.4891)
    assert threshold_at(many, 1e-3) is None and non_match_at(genuine, many, 1e-3) is None  # 1 impostor is no rate
    assert discriminability((0.6, 0.01, 0.1, 0.03)) == pytest.approx((0.25 / 0.04, 0.5 / sqrt(0.02)))
    assert equal_error_rate(genuine, np.zeros(NUM_BINS, int)) is None


def test_a_score_equal_to_the_threshold_matches():
    rate, at = equal_error_rate(counts(0.5), counts(0.5))
    assert rate == 0.5 and GRID[at] == -1.0  # FMR 1, FNMR 0 up to 0.5; FMR 0, FNMR 1 above: the lowest counts


def test_normal_scores_have_the_closed_form():
    """Equal variances: EER = Phi(-d'/2), and FDR = d'^2 / 2."""
    generator = np.random.default_rng(0)
    genuine, impostor = (count(generator.normal(mean, 0.1, 400_000)) for mean in (0.5, 0.2))
    rate, at = equal_error_rate(genuine, impostor)
    assert rate == pytest.approx(0.5 * (1 + erf(-1.5 / sqrt(2))), abs=0.001)
    assert GRID[at] == pytest.approx(0.35, abs=0.002)
    fdr, dprime = discriminability((*moments_of(genuine), *moments_of(impostor)))
    assert dprime == pytest.approx(3, abs=0.02) and fdr == pytest.approx(dprime**2 / 2)


def test_swapped_arguments_are_noticed():
    genuine, impostor = counts(0.5, 0.6, 0.7), counts(0.0, 0.1, 0.2)
    assert equal_error_rate(genuine, impostor)[0] == 0
    assert equal_error_rate(impostor, genuine)[0] == 1
    many = counts(*np.linspace(-0.3, 0.3, 2000))
    assert non_match_at(genuine, many, 1e-2)[0] == 0 and non_match_at(many, counts(*[0.6] * 2000), 1e-2)[0] == 1


def test_a_sample_of_images_is_near_the_truth_and_says_so(monkeypatch):
    rows = people(300, 4, seed=5)
    exact, sampled = (count_scores(rows, pairs, seed=1) for pairs in (ALL, 20_000))
    assert not sampled.impostor_exact and sampled.num_impostor < 20_000
    assert sampled.moments == exact.moments and (sampled.genuine == exact.genuine).all()
    mean = moments_of(sampled.impostor)[0]
    error = sampled.error_of(lambda g, i: moments_of(i)[0])
    assert abs(mean - exact.moments[2]) < 4 * error < 0.02
    monkeypatch.setattr(score_counts, "_MAX_ROWS", 3)
    assert not count_scores(rows, ALL, seed=1).genuine_exact


def test_the_bootstrap_error_is_the_spread_over_new_sets():
    """The error of one set against the spread of the figure over 40 other sets of as many people."""
    def figure(found):
        return equal_error_rate(found.genuine, found.impostor)[0]

    sets = [count_scores(people(60, 4, spread=2.0, size=32, seed=seed), ALL, seed=0) for seed in range(40)]
    spread = np.std([figure(found) for found in sets], ddof=1)
    errors = [found.error_of(lambda g, i: equal_error_rate(g, i)[0]) for found in sets[:8]]
    assert 0.6 < np.mean(errors) / spread < 1.6


def test_no_error_of_a_handful_of_people():
    assert count_scores(people(4, 3), ALL, seed=0).error_of(lambda g, i: moments_of(g)[0]) is None


def test_no_error_of_a_figure_that_resamples_leave_infinite():
    """Copies of one picture a person: genuine scores do not vary, and d-prime may be infinite."""
    counts = count_scores(people(8, 3), ALL, seed=0)
    assert counts.error_of(lambda g, i: np.inf) is None
    values = iter([np.inf, 1.0, 3.0, 1.0, 3.0, np.nan] * 1000)
    assert 0.9 < counts.error_of(lambda g, i: next(values)) < 1.1
