"""Verification figures against formulas written out, and the cases in which they are not defined."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.verification import (
    THRESHOLDS,
    cosine_threshold,
    equal_error_rate,
    roc_auc,
    squared_distances,
    tar_at_far,
    unit_rows,
    verify_folds,
)


def random_pairs(num_pairs: int = 203, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    is_same = random.random(num_pairs) < 0.5
    distance = np.clip(np.where(is_same, 0.9, 1.5) + 0.35 * random.standard_normal(num_pairs), 0, 4)
    return np.round(distance, 1) if ties else distance, is_same


def literal_folds(distance, is_same, folds):
    """The protocol as the papers tell it, pair by pair and threshold by threshold."""
    sizes = [len(distance) // folds + (i < len(distance) % folds) for i in range(folds)]
    starts = np.cumsum([0, *sizes])
    accuracy, chosen = [], []
    for i in range(folds):
        held_out = np.zeros(len(distance), dtype=bool)
        held_out[starts[i] : starts[i + 1]] = True
        best, best_threshold = -1.0, None
        for threshold in np.arange(0, 4, 0.01):
            right = np.mean((distance[~held_out] < threshold) == is_same[~held_out])
            if right > best:
                best, best_threshold = right, threshold
        chosen.append(best_threshold)
        accuracy.append(np.mean((distance[held_out] < best_threshold) == is_same[held_out]))
    return np.array(accuracy), np.array(chosen)


@pytest.mark.parametrize("folds", [2, 3, 10])
@pytest.mark.parametrize("ties", [False, True])
def test_folds_equal_literal_protocol(folds, ties):
    distance, is_same = random_pairs(ties=ties)
    accuracy, threshold = literal_folds(distance, is_same, folds)
    result = verify_folds(distance, is_same, folds)
    np.testing.assert_allclose(result.accuracy, accuracy, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.threshold, threshold)


def test_comparison_is_strict():
    """At d = 1 exactly, the threshold 1.00 still says "different"; 1.01 is the first that accepts."""
    result = verify_folds(np.array([1.0, 2.0, 1.0, 2.0]), np.array([True, False, True, False]), 2)
    assert THRESHOLDS[100] == 1.0
    np.testing.assert_array_equal(result.threshold, [THRESHOLDS[101]] * 2)
    assert result.accuracy.tolist() == [1.0, 1.0]


def test_first_of_equal_thresholds_wins():
    result = verify_folds(np.array([0.0, 3.0] * 2), np.array([True, False] * 2), 2)
    np.testing.assert_array_equal(result.threshold, [0.01, 0.01])


def test_folds_are_consecutive():
    """Fold 0 learns from pairs 2 and 3 only: there 0.5 must be rejected, so the genuine pair 0 is lost."""
    distance = np.array([0.5, 2.0, 0.2, 0.5])
    is_same = np.array([True, False, True, False])
    result = verify_folds(distance, is_same, 2)
    np.testing.assert_array_equal(result.threshold, THRESHOLDS[[21, 51]])
    assert result.accuracy.tolist() == [0.5, 0.5]


def test_genuine_pairs_are_near():
    """Swapping the answers must ruin the result: the direction of the comparison is part of the protocol."""
    distance, is_same = random_pairs()
    assert verify_folds(distance, is_same, 10).accuracy.mean() > 0.75
    assert verify_folds(distance, ~is_same, 10).accuracy.mean() < 0.6
    assert roc_auc(distance, is_same) > 0.85 > 0.15 > roc_auc(distance, ~is_same)


def test_tar_counts_impostors_exactly():
    """1,000 impostors at 0.001 * k: FAR 1e-2 allows ten of them, d < 0.010, whatever lies between."""
    impostor = np.arange(1000) / 1000
    genuine = np.array([0.0, 0.0099999, 0.01, 0.5])
    distance = np.concatenate([impostor, genuine])
    is_same = np.arange(1004) >= 1000
    assert tar_at_far(distance, is_same, 1e-2) == 0.5


def test_tar_equals_search_over_all_thresholds():
    distance, is_same = random_pairs(3000, ties=True)
    genuine, impostor = distance[is_same], distance[~is_same]
    for far in (0.01, 0.05, 0.3, 1.0):
        thresholds = np.append(np.unique(distance), np.inf)
        best = max(np.mean(genuine < t) for t in thresholds if np.mean(impostor < t) <= far)
        assert tar_at_far(distance, is_same, far) == best


def test_tar_needs_ten_false_accepts():
    is_same = np.arange(1001) >= 1000
    distance = np.arange(1001) / 1001
    assert tar_at_far(distance, is_same, 1e-2) is not None
    assert tar_at_far(distance[1:], is_same[1:], 1e-2) is None  # 999 impostors
    assert tar_at_far(distance, is_same, 1e-3) is None


def test_auc_counts_ties_half():
    distance, is_same = random_pairs(120, ties=True)
    genuine, impostor = distance[is_same], distance[~is_same]
    wins = [(g < i) + 0.5 * (g == i) for g in genuine for i in impostor]
    assert roc_auc(distance, is_same) == pytest.approx(np.mean(wins), abs=1e-12)


def test_equal_error_rate_by_hand():
    """d < 2 accepts 3 of 4 genuine and 1 of 4 impostor pairs: both rates are 1/4."""
    distance = np.array([0.1, 0.2, 1.5, 3.0, 1.0, 2.0, 2.5, 3.5])
    is_same = np.array([True] * 4 + [False] * 4)
    assert equal_error_rate(distance, is_same) == 0.25
    assert equal_error_rate(np.array([0.0, 1.0]), np.array([True, False])) == 0.0
    assert equal_error_rate(np.array([0.0, 1.0]), np.array([False, True])) == 1.0


def test_unit_rows_and_distance_closed_form():
    vectors = np.random.default_rng(0).standard_normal((6, 5))
    unit = unit_rows(vectors)
    cosine = np.sum(unit[:3] * unit[3:], axis=1)
    distance = squared_distances(unit[:3], unit[3:])
    np.testing.assert_allclose(distance, 2 - 2 * cosine, atol=1e-14)
    np.testing.assert_allclose(cosine_threshold(distance), cosine, atol=1e-14)
    assert unit_rows(np.zeros((1, 5))).tolist() == [[0.0] * 5]
    assert unit.dtype == np.float64 == unit_rows(vectors.astype(np.float32)).dtype


def test_one_class_only():
    distance, is_same = np.full(20, 0.5), np.ones(20, dtype=bool)
    assert verify_folds(distance, is_same, 10).accuracy.mean() == 1.0
    for figure in (roc_auc, equal_error_rate):
        assert figure(distance, is_same) is None and figure(distance, ~is_same) is None
    assert tar_at_far(distance, is_same, 1e-2) is None


def test_degenerate_input_is_refused():
    with pytest.raises(UserError, match="1 of 3 pair distances are not finite"):
        verify_folds(np.array([0.0, np.nan, 1.0]), np.array([True, False, True]), 2)
    with pytest.raises(UserError, match="cannot cut 3 pairs into 4 folds"):
        verify_folds(np.zeros(3), np.ones(3, dtype=bool), 4)
    with pytest.raises(UserError, match="at least 2 folds"):
        verify_folds(np.zeros(3), np.ones(3, dtype=bool), 1)
    with pytest.raises(ValueError, match="two equal 1-D arrays"):
        roc_auc(np.zeros(3), np.ones(2, dtype=bool))


def test_equal_error_rate_is_that_of_the_nearest_of_all_thresholds():
    """Also with ties and few pairs of a class, where several thresholds may be equally near: the lowest counts."""
    random = np.random.RandomState(0)
    for k in range(300):
        is_same = np.arange(random.randint(2, 40)) % random.randint(2, 9) == 0
        distance = random.normal(size=len(is_same)) - is_same * random.uniform(0, 2)
        distance = np.round(distance * 3) / 3 if k % 2 else distance
        genuine, impostor = distance[is_same], distance[~is_same]
        thresholds = [*np.unique(distance), np.inf]
        far = np.array([np.count_nonzero(impostor < t) for t in thresholds]) / len(impostor)
        frr = 1 - np.array([np.count_nonzero(genuine < t) for t in thresholds]) / len(genuine)
        at = int(np.argmin(np.abs(far - frr)))
        assert equal_error_rate(distance, is_same) == (far[at] + frr[at]) / 2
