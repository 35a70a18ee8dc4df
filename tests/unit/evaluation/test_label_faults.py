"""Planted faults of labels are found, and a clean set has none."""

from __future__ import annotations

import numpy as np
import pytest
from made_embeddings import angle, labeled, people

from facesyn_cli.evaluation.label_faults import mixed_identities, split_identities, two_parts, wrong_labels
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import count_scores


@pytest.fixture(scope="module")
def clean() -> LabeledEmbeddings:
    return people(60, 8, spread=0.8, size=128)


def named(rows: LabeledEmbeddings) -> list[str]:
    return [rows.identities[owner] for owner in rows.owner]


def relabeled(rows: LabeledEmbeddings, names: list[str]) -> LabeledEmbeddings:
    return LabeledEmbeddings.of(rows.keys, names, rows.vectors)


def faults(rows: LabeledEmbeddings) -> dict:
    counts = count_scores(rows, 10**9, 0)
    loose, middle, strict = (counts.threshold_at(rate) for rate in (1e-2, 1e-3, 1e-4))
    section = wrong_labels(rows, 10**9, 0)
    section.merge(mixed_identities(rows, middle, loose)).merge(split_identities(rows, strict))
    return {"figures": {f.id.split(".")[1]: f.value for f in section.figures}, "lists": section.lists,
            "findings": section.findings}


def test_a_clean_set_has_no_fault(clean):
    found = faults(clean)
    assert found["figures"] == {"wrong_label_share": 0, "mixed_identities": 0, "split_identities": 0}
    assert not found["findings"]


def test_two_people_under_one_label(clean):
    names = ["p7" if name == "p31" else name for name in named(clean)]
    found = faults(relabeled(clean, names))
    assert found["figures"]["mixed_identities"] == 1
    row = found["lists"]["identity.mixed"][0]
    assert row.identities == ["p7"] and row.label == "8 and 8 images"
    assert {key.split("/")[0] for _, key in row.images[:5]} != {key.split("/")[0] for _, key in row.images[5:]}
    assert found["findings"][0].level == "fault" and "p7" in found["findings"][0].text


def test_one_person_under_two_labels(clean):
    names = ["extra" if key in ("p5/0", "p5/1", "p5/2") else name
             for key, name in zip(clean.keys, named(clean), strict=True)]
    found = faults(relabeled(clean, names))
    assert found["figures"]["split_identities"] == 1 and found["figures"]["mixed_identities"] == 0
    assert set(found["lists"]["identity.split"][0].identities) == {"extra", "p5"}


def test_shuffled_labels(clean):
    names = list(np.random.default_rng(0).permutation(named(clean)))
    found = faults(relabeled(clean, names))
    assert found["figures"]["wrong_label_share"] > 0.9
    assert any(f.level == "fault" and "shuffled labels" in f.text for f in found["findings"])


def test_a_few_wrong_labels_are_listed(clean):
    names = named(clean)
    names[0], names[8] = names[8], names[0]
    found = faults(relabeled(clean, names))
    assert found["figures"]["wrong_label_share"] == pytest.approx(2 / 480)
    listed = {row.images[0][1]: row.identities for row in found["lists"]["identity.wrong_labels"]}
    assert listed == {"p0/0": ["p1", "p0"], "p1/0": ["p0", "p1"]}
    assert [(f.level, f.text[:19]) for f in found["findings"]] == [("note", "2 of 480 images are")]


def test_wrong_labels_of_a_sample(clean):
    names = list(np.random.default_rng(0).permutation(named(clean)))
    section = wrong_labels(relabeled(clean, names), max_pairs=60 * 100, seed=0)
    figure = section.figures[0]
    assert figure.n == 100 and not figure.exact and figure.value > 0.9 and figure.error is not None


def test_mean_scores_decide_what_is_split():
    # every identity scores 1 with itself, a and b cos 30 = 0.866 with each other: below 0.9 of that
    rows = labeled(angle(0, 0, 30, 30, 90, 90), "aabbcc")
    assert split_identities(rows, threshold=0.3).figures[0].value == 0
    rows = labeled(angle(0, 0, 20, 20, 90, 90), "aabbcc")                      # cos 20 = 0.940
    assert split_identities(rows, threshold=0.3).figures[0].value == 1
    assert split_identities(rows, threshold=0.95).figures[0].value == 0


def test_two_parts():
    scores = angle(0, 5, 90, 95, 2) @ angle(0, 5, 90, 95, 2).T
    parts = two_parts(scores)
    assert set(np.flatnonzero(parts == parts[0])) == {0, 1, 4}
    assert two_parts(np.ones((4, 4))) is None


def test_sets_without_several_images(clean):
    lone = labeled(angle(0, 90), "ab")
    assert not wrong_labels(lone, 10**9, 0).figures and wrong_labels(lone, 10**9, 0).notes
