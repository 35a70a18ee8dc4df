"""Figures by group: tables that are refused, groups with known figures, and the spread between them."""

from __future__ import annotations

import numpy as np
import pytest
from made_embeddings import people

from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.fairness import group_section, read_groups
from facesyn_cli.evaluation.identity_quality import mean_genuine
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.score_counts import count_scores, error_rates
from facesyn_cli.evaluation.section import mean_over_identities


def write(tmp_path, text: str):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    return path


def test_a_table_is_read(tmp_path):
    path = write(tmp_path, "identity, gender ,age\np0,f,old\np1,m,\n\np0,f,old\n")
    assert read_groups(path) == ("identity", {"gender": {"p0": "f", "p1": "m"}, "age": {"p0": "old"}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty file"), ("name,gender\na,f\n", "found name,gender"), ("identity\np0\n", "first line"),
        ("identity,a,a\np0,x,y\n", "two columns"), ("identity,a\np0\n", "row 2: 1 values, 2 were expected"),
        ("identity,a\np0,x\np0,y\n", "row 3: p0 has a y here"), ("identity,,b\np0,1,2\n", "has none"),
    ],
)
def test_wrong_tables(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        read_groups(write(tmp_path, text))


def test_missing_and_binary_tables(tmp_path):
    with pytest.raises(UserError, match="was expected"):
        read_groups(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00identity")
    with pytest.raises(UserError, match="was expected"):
        read_groups(tmp_path / "b.csv")


@pytest.fixture(scope="module")
def two_kinds() -> LabeledEmbeddings:
    """60 people that a judge knows well (p) and 40 that it does not (q)."""
    well, badly = people(60, 5, spread=0.4, seed=0), people(40, 5, spread=1.5, seed=1, prefix="q")
    return LabeledEmbeddings.of(
        well.keys + badly.keys, [key.split("/")[0] for key in well.keys + badly.keys],
        np.concatenate([well.vectors, badly.vectors]),
    )


def section_of(rows, groups, kind="identity"):
    counts = count_scores(rows, 10**9, 0)
    return counts, group_section(
        rows, kind, groups, counts, 10**9, 0, lambda part, own: [mean_over_identities("identity.consistency",
                                                                                         mean_genuine(part))])


def test_every_group_has_its_own_figures(two_kinds):
    groups = {"kind": {name: name[0] for name in two_kinds.identities}}
    counts, section = section_of(two_kinds, groups)
    values = {(figure.id, figure.group): figure for figure in section.figures}
    assert values["fairness.identities", "kind=q"].value == 40 and values["fairness.images", "kind=p"].value == 300
    known, unknown = (values["fairness.identity.consistency", f"kind={k}"].value for k in "pq")
    own = mean_genuine(two_kinds)
    assert known == pytest.approx(own[:60].mean()) and unknown == pytest.approx(own[60:].mean())
    spread = values["fairness.identity.consistency_spread", "kind"]
    assert spread.value == pytest.approx(known - unknown) and spread.n == 2 and spread.error > 0
    assert ("fairness.identities_spread", "kind") not in values


def test_the_common_threshold_is_that_of_the_whole_set(two_kinds):
    groups = {"kind": {name: name[0] for name in two_kinds.identities}}
    counts, section = section_of(two_kinds, groups)
    values = {(figure.id, figure.group): figure for figure in section.figures}
    part = two_kinds.part(two_kinds.owner >= 60)
    own = count_scores(part, 10**9, 0)
    at = round((counts.threshold_at(1e-3) + 1) * 1e4)
    false_match, false_non_match = error_rates(own.genuine, own.impostor)
    assert values["fairness.fnmr", "kind=q"].value == pytest.approx(false_non_match[at])
    assert values["fairness.fmr", "kind=q"].value == pytest.approx(false_match[at])
    assert values["fairness.fnmr", "kind=q"].value > values["fairness.fnmr", "kind=p"].value
    assert values["fairness.fnmr", "kind=q"].error > 0


def test_groups_of_images_and_unknown_ones(two_kinds):
    some = {key: "front" if key.endswith("/0") else "side" for key in two_kinds.keys if not key.endswith("/4")}
    _, section = section_of(two_kinds, {"view": some}, kind="key")
    values = {(figure.id, figure.group): figure.value for figure in section.figures}
    assert values["fairness.images", "view=front"] == 100 and values["fairness.images", "view=side"] == 300
    assert "100 of 500 images have no value of view." in section.notes
    with pytest.raises(UserError, match="no identity of the set has a value of kind; names such as 'p0'"):
        section_of(two_kinds, {"kind": {"someone": "x"}})
    _, section = section_of(two_kinds, {"kind": {"p0": "alone"}})
    assert any("fewer than 2 identities" in note for note in section.notes)
