"""Distinct and consistent identities: people at known angles."""

from __future__ import annotations

import numpy as np
import pytest
from made_embeddings import angle, labeled, people

from facesyn_cli.contexts.unique import Unique
from facesyn_cli.evaluation.identity_quality import (
    center_section,
    fidelity_section,
    loo_cosines,
    mean_genuine,
    score_section,
)
from facesyn_cli.evaluation.score_counts import count_scores


def figures(rows, r: float = 0.5) -> dict[str, float]:
    keep = {radius: Unique(radius).select for radius in (r, 0.40)}
    return {figure.id: figure.value for figure in center_section(rows, r, keep).figures}


def test_unique_and_separate_people():
    # centers at 0, 50, 100, 150, 230 degrees; cos 50 = 0.643, cos 80 = 0.17
    found = figures(labeled(angle(0, 50, 100, 150, 230), "abcde"))
    assert found["identity.unique_share"] == 3 / 5   # 0; 50 is too near; 100; 150 too near to 100; 230
    assert found["identity.unique_040"] == 3 / 5
    assert found["identity.separate_040"] == 1 / 5   # only 230, 80 degrees from its nearest


def test_the_order_of_identities_decides_who_stays():
    in_order, turned = (figures(labeled(angle(*a), "abc")) for a in ((0, 50, 100), (50, 0, 100)))
    assert in_order["identity.unique_share"] == 2 / 3 and turned["identity.unique_share"] == 1 / 3


def test_consistent_images():
    # center of -30, 0, 30 is 0; with r = 0.9 (25.8 degrees) one of three images matches it
    rows = labeled(np.concatenate([angle(-30, 0, 30), angle(180, 180)]), "aaabb")
    found = figures(rows, r=0.9)
    assert found["identity.consistent_share"] == pytest.approx((1 / 3 + 1) / 2)  # identities count, not images
    assert figures(rows, r=0.8)["identity.consistent_share"] == 1
    pairs = (2 * np.cos(np.pi / 6) + np.cos(np.pi / 3)) / 3
    np.testing.assert_allclose(mean_genuine(rows), [pairs, 1], atol=1e-6)
    assert found["identity.consistency"] == pytest.approx((pairs + 1) / 2)


def test_consistent_images_of_chance_are_called_so():
    """Unrelated images lie at 1 / sqrt(n) from their own mean, above r = 0.3 up to n = 11."""
    keep = {radius: Unique(radius).select for radius in (0.3, 0.40)}
    few, many = (people(30, n, spread=100.0, size=512) for n in (10, 12))
    section = center_section(few, 0.3, keep)
    assert section.value("identity.consistent_share") > 0.5 and abs(section.value("identity.consistency")) < 0.01
    assert any("1 / sqrt(n)" in note and "0.32" in note for note in section.notes)
    assert not center_section(many, 0.3, keep).notes


def test_separability_is_the_mean_distance_of_centers():
    found = figures(labeled(angle(0, 90, 180), "abc"))
    assert found["identity.separability"] == pytest.approx((1 + 2 + 1 + 1 + 1 + 2) / 6)
    rows = people(8, 3)
    cosines = rows.centers.astype(np.float64) @ rows.centers.T
    expected = np.mean(1 - cosines[~np.eye(8, dtype=bool)])
    assert figures(rows)["identity.separability"] == pytest.approx(expected, abs=1e-6)


def test_cosine_to_the_others_of_an_identity():
    rows = people(5, 4, spread=1.0)
    expected = []
    for row, owner in enumerate(rows.owner):
        others = rows.vectors[(rows.owner == owner) & (np.arange(len(rows.owner)) != row)].sum(0)
        expected.append(rows.vectors[row] @ others / np.linalg.norm(others))
    np.testing.assert_allclose(loo_cosines(rows), expected, atol=1e-5)
    assert np.isnan(loo_cosines(labeled(angle(0, 10, 90), "aab"))[2])


def test_best_and_worst_images():
    rows = labeled(np.concatenate([angle(0, 1, 2, 40), angle(180, 180, 181)]), "aaaabbb")
    section = center_section(rows, 0.3, {0.3: Unique(0.3).select, 0.4: Unique(0.4).select})
    worst = section.lists["identity.worst"][0]
    assert worst.images == [("set", "a/3")] and worst.score == pytest.approx(np.cos(np.deg2rad(39)), abs=1e-6)
    assert [row.identities for row in section.lists["identity.best"]] == [["b"], ["a"]]


def test_curve_of_unique_people():
    section = center_section(labeled(angle(0, 10, 90, 95), "abcd"), 0.5,
                             {0.5: Unique(0.5).select, 0.4: Unique(0.4).select})
    n, share = section.curves[0].series["r = 0.5"]
    np.testing.assert_allclose(dict(zip(n, share, strict=True))[4], 0.5)
    np.testing.assert_allclose([dict(zip(n, share, strict=True))[k] for k in (1, 2, 3)], [1, 1 / 2, 2 / 3])


def test_score_section_has_every_figure_with_its_error():
    rows = people(80, 5, spread=1.0)
    section = score_section(count_scores(rows, 10**9, 0))
    assert [f.id.split(".")[1] for f in section.figures] == [
        "genuine_mean", "impostor_mean", "eer", "fmr100", "fmr1000", "fdr", "dprime"]
    assert all(figure.error > 0 for figure in section.figures if figure.id != "identity.fmr1000")
    histogram = section.histograms[0]
    assert sum(histogram.series["genuine"]) == 80 * 10 and sum(histogram.series["impostor"]) == 400 * 399 // 2 - 800
    det, roc = section.curves
    for x, y in (*det.series.values(), *roc.series.values()):
        assert (np.diff(x) <= 0).all() and len(x) == len(y) > 10
    assert (np.diff(roc.series["scores"][1]) <= 0).all(), "fewer false matches cost true ones"


def test_no_person_and_one_person():
    assert figures(people(1, 3)).keys() >= {"identity.unique_share"}
    section = score_section(count_scores(people(1, 3), 10**9, 0))
    assert {f.id: f.value for f in section.figures}["identity.eer"] is None and section.curves == []


def test_fidelity_compares_with_the_other_photos_of_the_person():
    own, real = people(4, 3, seed=0), people(5, 4, seed=1, prefix="r")
    photos = {"p0": "r2/1", "p2": "r0/3", "p3": "of nobody"}
    section = fidelity_section(own, real, photos)
    found = {figure.id: figure for figure in section.figures}
    for name, vectors_of in (("fidelity", lambda p, row: own.vectors[own.rows_of(p)]),
                             ("real_fidelity", lambda p, row: real.vectors[[row]])):
        means = []
        for identity, key in ((0, "r2/1"), (2, "r0/3")):
            row = real.keys.index(key)
            others = [k for k in range(20) if real.owner[k] == real.owner[row] and k != row]
            means.append(np.mean([a @ real.vectors[k] for a in vectors_of(identity, row) for k in others]))
        assert found[f"identity.{name}"].value == pytest.approx(np.mean(means), abs=1e-6)
        assert found[f"identity.{name}"].n == 2
    assert not section.notes


def test_fidelity_says_whose_other_photos_are_missing():
    real = labeled(angle(0, 10, 90, 200), ["a", "a", "b", "c"])
    own = labeled(angle(0, 30, 60, 90), ["x", "x", "y", "y"])
    section = fidelity_section(own, real, {"x": "a/0", "y": "b/2"})
    fidelity, photos = section.figures
    assert fidelity.n == 1 and photos.value == pytest.approx(np.cos(np.deg2rad(10)))
    assert fidelity.value == pytest.approx((np.cos(np.deg2rad(10)) + np.cos(np.deg2rad(20))) / 2)
    assert "leaves out 1 of 2 identities" in section.notes[0]
    assert not fidelity_section(own, real, {}).figures and not fidelity_section(own, real, {"x": "elsewhere"}).figures
