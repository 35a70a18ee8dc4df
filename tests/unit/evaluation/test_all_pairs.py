"""All pairs of a folder: figures against loops over pairs, identities of equal weight, and intervals that hold."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from made_embeddings import angle, labeled, people, unit

from facesyn_cli.evaluation import all_pairs, score_counts
from facesyn_cli.evaluation.all_pairs import auc, count_all_pairs, eer, identify, tar_at
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import draws_of


def uneven(num_people: int, seed: int, spread: float = 1.5, size: int = 16) -> LabeledEmbeddings:
    """People with 1 to 6 images; products of the rows have no rounding errors, on whatever processor."""
    generator = np.random.default_rng(seed)
    rows, names = [], []
    for person in range(num_people):
        count = 1 + person % 6
        center = unit(generator.normal(size=size))
        rows += list(center + spread / np.sqrt(size) * generator.normal(size=(count, size)))
        names += [f"p{person}"] * count
    found = labeled(np.array(rows), names)
    found.vectors[:] = np.round(found.vectors * 64) / 64
    return found


def by_hand(rows: LabeledEmbeddings) -> dict[str, float]:
    """The figures from lists of all pairs and their weights, without a grid of counts."""
    scores = np.rint((rows.vectors @ rows.vectors.T + np.float32(1)) * np.float32(1e4)).clip(0, 20000)
    genuine, impostor = [], []
    owners = range(len(rows.identities))
    several = [c for c in owners if rows.sizes[c] > 1]
    for c in several:
        own = range(rows.starts[c], rows.starts[c + 1])
        pairs = list(combinations(own, 2))
        genuine += [(scores[i, j], 1 / len(pairs) / len(several)) for i, j in pairs]
    for a, b in combinations(owners, 2):
        block = scores[rows.rows_of(a), rows.rows_of(b)].ravel()
        impostor += [(score, 1 / len(block) / (len(owners) * (len(owners) - 1) / 2)) for score in block]
    (g, v), (i, w) = (np.array(part).T for part in (genuine, impostor))
    accepted = lambda values, weights, t: weights[values >= t].sum()  # noqa: E731
    grid = np.unique(np.concatenate([g, i, [20001]]))
    far, tar = (np.array([accepted(*part, t) for t in grid]) for part in ((i, w), (g, v)))
    at = np.argmin(np.abs(far - (1 - tar)))
    above = (v[:, None] * w[None] * ((g[:, None] > i[None]) + 0.5 * (g[:, None] == i[None]))).sum()
    found = {"eer": (far[at] + 1 - tar[at]) / 2, "auc": above, "pairs": len(g) + len(i), "genuine": len(g),
             "effective": w.sum() ** 2 / np.square(w).sum()}
    return found | {f"{rate:.0e}": tar[far <= rate].max() for rate in (1e-1, 1e-2, 1e-3)}


def test_figures_are_those_of_loops_over_all_pairs():
    rows = uneven(60, seed=0)
    expected, pairs = by_hand(rows), count_all_pairs(rows)
    assert pairs.num_genuine == expected["genuine"]
    assert pairs.num_genuine + pairs.num_impostor == expected["pairs"] == len(rows.keys) * (len(rows.keys) - 1) / 2
    assert pairs.effective_impostors == pytest.approx(expected["effective"])
    assert pairs.at(eer) == pytest.approx(expected["eer"], abs=1e-9)
    assert pairs.at(auc) == pytest.approx(expected["auc"], abs=1e-9)
    for rate in (1e-1, 1e-2, 1e-3):
        assert pairs.at(tar_at(rate)) == pytest.approx(expected[f"{rate:.0e}"], abs=1e-9)
    assert pairs.genuine.sum() == pytest.approx(1) == pairs.impostor.sum()
    assert pairs.by_group.sum(0) @ np.ones(2001) == pytest.approx(1) == pairs.by_groups.sum(dtype=np.float64)


def test_blocks_and_groups_do_not_change_the_figures(monkeypatch):
    rows = uneven(100, seed=1)
    whole = count_all_pairs(rows)
    monkeypatch.setattr(all_pairs, "_MAX_GROUPS", 7)
    monkeypatch.setattr(score_counts, "rows_at_once", lambda columns: 3)
    again = count_all_pairs(rows)
    assert len(again.by_group) == 7
    for name in ("genuine", "impostor"):
        np.testing.assert_allclose(getattr(again, name), getattr(whole, name), atol=1e-15)


def test_a_person_with_many_photos_weighs_as_one():
    # a: two photos alike; b: ten photos, pairs of which are unlike
    degrees = [0, 1, *range(60, 260, 20), 300]
    rows = labeled(angle(*degrees), ["a"] * 2 + ["b"] * 10 + ["c"])
    pairs = count_all_pairs(rows)
    close = np.mean([abs(i - j) * 20 <= 20 for i, j in combinations(range(10), 2)])
    threshold = int(round((np.cos(np.deg2rad(20)) + 1) / 1e-4))
    assert pairs.genuine[threshold - 1:].sum() == pytest.approx((1 + close) / 2)


def test_identification_averages_over_people():
    # the gallery: a at 0, b at 90, c at 180; probes of a at 10, 80 and 85 (nearer to b), of b at 100
    rows = labeled(angle(0, 10, 80, 85, 90, 100, 180), ["a", "a", "a", "a", "b", "b", "c"])
    rates, intervals, num_probes = identify(rows)
    assert num_probes == 4 and rates["1"] == pytest.approx((1 / 3 + 1) / 2) and rates["5"] == 1
    assert 0 <= intervals["rank 1"][0] <= rates["1"] <= intervals["rank 1"][1] <= 1


def test_a_better_recognizer_is_told_by_the_same_people():
    """The paired interval of a small difference leaves out zero where the two intervals overlap."""
    generator = np.random.default_rng(0)
    first = people(60, 5, spread=2.2, size=32, seed=3)
    noise = first.vectors + 0.085 * generator.normal(size=first.vectors.shape)
    second = LabeledEmbeddings.of(first.keys, [first.identity_of(row) for row in range(300)], unit(noise))
    a, b = count_all_pairs(first), count_all_pairs(second)
    (low_a, high_a), (low_b, high_b) = a.interval(eer), b.interval(eer)
    assert max(low_a, low_b) < min(high_a, high_b)
    difference, (low, high) = a.difference(b, eer)
    assert difference == pytest.approx(a.at(eer) - b.at(eer)) and low < difference < high < 0
    assert high - low < 0.7 * (high_a - low_a + high_b - low_b)
    same, (low, high) = a.difference(a, eer)
    assert same == low == high == 0
    with pytest.raises(ValueError, match="same identities"):
        a.difference(count_all_pairs(people(30, 2)), eer)


def coverage(num_sets: int, num_people: int) -> dict[str, float]:
    """Share of sets of people, some of them harder than others, whose interval holds the figure of all people."""

    def draw(count: int, seed: int) -> LabeledEmbeddings:
        generator = np.random.default_rng(seed)
        centers = unit(generator.normal(size=(count, 12)))
        spread = generator.uniform(0.5, 3.0, (count, 1, 1)) / np.sqrt(12)
        rows = (centers[:, None] + spread * generator.normal(size=(count, 4, 12))).reshape(-1, 12)
        return labeled(rows, [f"p{k}" for k in range(count) for _ in range(4)])

    figures = {"eer": eer, "auc": auc, "tar": tar_at(1e-1)}
    everyone = count_all_pairs(draw(1000, seed=10**6))
    truth = {name: everyone.at(figure) for name, figure in figures.items()}
    inside = dict.fromkeys(figures, 0)
    for seed in range(num_sets):
        pairs = count_all_pairs(draw(num_people, seed))
        for name, figure in figures.items():
            low, high = pairs.interval(figure)
            inside[name] += low <= truth[name] <= high
    return {name: count / num_sets for name, count in inside.items()}


def test_intervals_hold_the_truth():
    for name, share in coverage(25, 30).items():
        assert share >= 0.76, (name, share)  # 19 of 25: the chance is 1 in 1,000 where 95 % hold


@pytest.mark.exhaustive
def test_intervals_hold_the_truth_in_95_percent_of_500_sets():
    found = coverage(500, 150)
    print(found)
    for name, share in found.items():
        assert 0.93 <= share <= 0.97, (name, share)


def test_draws_depend_on_nothing_but_the_number_of_groups():
    draws = draws_of(5, 1000)
    assert (draws == draws_of(5, 1000)).all() and (draws.sum(1) == 5).all() and len(draws) == 1000
