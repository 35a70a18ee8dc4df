"""Distances of labeled sets: what they are given, the floor, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from made_embeddings import people

from facesyn_cli.evaluation import set_quality
from facesyn_cli.evaluation.set_distance import frechet_distance, kernel_distance, neighborhoods, recall_of_each
from facesyn_cli.evaluation.set_quality import features_section, quality_section


def figures(rows, reference) -> dict:
    return {figure.id.split(".")[1]: figure for figure in quality_section(rows, reference, 0).figures}


def test_equal_sizes_are_exact():
    a, b = people(20, 3, seed=0, size=16), people(20, 3, seed=1, size=16)
    found = figures(a, b)
    assert found["frechet"].value == pytest.approx(frechet_distance(b.vectors, a.vectors)) and found["frechet"].exact
    assert found["frechet"].n == 60 and found["frechet"].error > 0


def test_the_larger_set_is_cut_to_the_smaller_one():
    small, large = people(20, 2, seed=0, size=8), people(200, 3, seed=1, size=8)
    for found in (figures(small, large), figures(large, small)):
        assert found["frechet"].n == 40 and not found["frechet"].exact


def test_a_floor_of_fewer_images_says_so():
    few, many = (people(n, 2, seed=0, size=8) for n in (20, 60))
    reference = people(60, 2, seed=1, size=8)
    said = [[note for note in quality_section(rows, reference, 0).notes if "real to real" in note]
            for rows in (few, many)]
    assert not said[0] and "is of 60 images, not 120" in said[1][0]


def test_more_people_of_the_same_kind_are_as_near_as_the_floor():
    reference, same, other = (people(300, 3, seed=seed, size=8) for seed in (1, 2, 3))
    other.vectors[:] = np.abs(other.vectors)
    near, far = figures(same, reference), figures(other, reference)
    assert near["frechet"].value < 2 * near["frechet_floor"].value < far["frechet"].value / 5
    assert abs(near["kernel"].value) < 0.1 * far["kernel"].value
    assert near["precision"].value > 0.8 and near["recall"].value > 0.8
    assert near["density"].value == pytest.approx(1, abs=0.3)


def test_a_classifier_tells_another_kind_of_people():
    reference, same, other = (people(100, 3, seed=seed, size=8) for seed in (1, 2, 3))
    other.vectors[:] = np.abs(other.vectors)
    near, far = (figures(rows, reference)["classifier_auc"] for rows in (same, other))
    assert near.value == pytest.approx(0.5, abs=0.1) and far.value > 0.95 and near.error > 0
    few = quality_section(people(4, 5, seed=0, size=8), reference, 0)
    assert few.value("quality.classifier_auc") is None and any("5 identities" in note for note in few.notes)


def test_one_image_of_each_person_makes_neighbors():
    """With several images of one person the nearest neighbors would be that person, and nobody new would count."""
    rows, reference = people(60, 10, spread=0.05, seed=0, size=4), people(60, 10, spread=0.05, seed=1, size=4)
    assert figures(rows, reference)["precision"].value > 0.7
    assert neighborhoods(reference.vectors, rows.vectors, 3)["precision"] < 0.3
    assert figures(rows, reference)["precision"].n == 60


def test_swapped_arguments_are_noticed():
    everywhere, corner = people(300, 2, seed=1, size=6), people(300, 2, seed=2, size=6)
    corner.vectors[:] = corner.vectors * 0.02 + everywhere.vectors[0]
    corner.vectors[:] /= np.linalg.norm(corner.vectors, axis=1, keepdims=True)
    right, swapped = figures(corner, everywhere), figures(everywhere, corner)
    assert right["precision"].value > 0.9 and right["recall"].value < 0.1
    assert swapped["precision"].value < 0.1 and swapped["recall"].value > 0.9


def test_the_error_is_a_jackknife_over_groups_of_identities():
    """With a group of one identity each, leaving a group out is leaving an identity out, in whatever order."""
    rows, reference = people(10, 4, seed=4, size=5), people(10, 4, seed=5, size=5)
    generator = np.random.default_rng(0)
    order = [generator.choice(40, 40, replace=False) for _ in range(2)]
    group = [generator.permutation(10)[part.owner[chosen]] for part, chosen in
             ((reference, order[1]), (rows, order[0]))]
    left = [frechet_distance(reference.vectors[order[1]][group[0] != k], rows.vectors[order[0]][group[1] != k])
            for k in range(10)]
    expected = np.sqrt(0.9 * np.square(left - np.mean(left)).sum())
    assert figures(rows, reference)["frechet"].error == pytest.approx(expected)


def of_network(rows, reference, is_whole=True, is_reference_whole=True) -> tuple[dict, list[str]]:
    section = features_section(rows, reference, 0, is_whole, is_reference_whole)
    assert all(figure.id.startswith("features.") for figure in section.figures)
    return {figure.id.split(".")[1]: figure for figure in section.figures}, section.notes


def test_features_of_a_network_are_taken_as_they_are_and_all_images_make_neighborhoods():
    rows, reference = (people(20, 6, seed=seed, size=8) for seed in (0, 1))
    rows.vectors[:] *= 7
    reference.vectors[:] *= 5
    found, notes = of_network(rows, reference)
    assert found["frechet"].value == pytest.approx(frechet_distance(reference.vectors, rows.vectors))
    assert found["kernel"].value == pytest.approx(kernel_distance(reference.vectors, rows.vectors, 0)[0])
    for name, k in (("precision", 3), ("recall", 3), ("density", 5), ("coverage", 5)):
        assert found[name].value == pytest.approx(neighborhoods(reference.vectors, rows.vectors, k)[name])
        assert found[name].n == 120 and found[name].exact
    assert any("are higher" in note for note in notes)


def test_style_coverage_is_the_recall_of_each_identity():
    rows, reference = people(12, 5, spread=2, seed=0, size=3), people(30, 4, spread=2, seed=1, size=3)
    found, _ = of_network(rows, reference)
    parts = [rows.vectors[rows.rows_of(c)] for c in range(12)]
    expected = recall_of_each(reference.vectors, parts, 3)
    assert found["d_intra"].value == pytest.approx(expected.mean()) and 0 < expected.mean() < 1
    assert found["d_intra"].error == pytest.approx(expected.std(ddof=1) / np.sqrt(12)) and found["d_intra"].exact
    found, notes = of_network(rows, reference, is_whole=False)
    assert "d_intra" not in found and any("D_intra needs" in note for note in notes)
    assert not any(figure.exact for figure in found.values())
    found, _ = of_network(rows, reference, is_reference_whole=False)
    assert "d_intra" in found and not any(figure.exact for figure in found.values())


def test_small_sets_have_no_distance(monkeypatch):
    section = quality_section(people(3, 2), people(50, 2), 0)
    assert not section.figures and "need 10 images" in section.notes[0]
    assert "precision" not in figures(people(4, 5), people(50, 2))
    monkeypatch.setattr(set_quality, "MAX_ROWS", 30)
    assert figures(people(50, 2), people(50, 2, seed=1))["frechet"].n == 30
