"""Rows of a table: what they inherit, and mistakes in them."""

from __future__ import annotations

import pytest

from facesyn_cli.config.ablation_rows import apply_words, expand_rows, merge_settings, select_rows
from facesyn_cli.config.recipe import load_recipe, load_sections
from facesyn_cli.errors import UserError

BASE = {"sample": {"per_id": 8, "guidance": {"name": "cfg", "scale": 3}}, "augment": {"augmentation": "oversample"},
        "train-fr": {"epochs": 2}}


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"name": "cfg", "scale": 3}, {"scale": 2}, {"name": "cfg", "scale": 2}),
        ({"name": "cfg", "scale": 3}, {"name": "cfg", "start": 1}, {"name": "cfg", "scale": 3, "start": 1}),
        ({"name": "cfg", "scale": 3}, {"name": "none"}, {"name": "none"}),
        ({"name": "cfg", "scale": 3}, "none", {"name": "none"}),
        ({"name": "cfg", "scale": 3}, "cfg", {"name": "cfg", "scale": 3}),
        ("cfg", {"scale": 2}, {"name": "cfg", "scale": 2}),
        ([1, 2], [3], [3]),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
    ],
)
def test_settings_on_top_of_settings(base, over, merged) -> None:
    assert merge_settings(base, over) == merged


def test_rows_build_on_the_table_and_on_each_other() -> None:
    raw = [
        {"name": "real", "real": True, "identities": 4},
        {"name": "plain", "augment": None, "images": 20},
        {"name": "more", "base": "plain", "title": "+ more", "sample": {"guidance": {"scale": 2}}},
        {"name": "other", "gen-contexts": {"source": "sphere"}},
    ]
    real, plain, more, other = expand_rows(raw, BASE)
    assert real.real is True and real.identities == 4 and real.sections == {} and real.base is None
    assert plain.sections == {"sample": BASE["sample"]} and plain.images == 20 and plain.title == "plain"
    assert more.sections == {"sample": {"per_id": 8, "guidance": {"name": "cfg", "scale": 2}}}
    assert (more.base, more.title, more.images) == ("plain", "+ more", 20)
    assert other.sections == {k: v for k, v in BASE.items() if k != "train-fr"} | {"gen-contexts": {"source": "sphere"}}
    assert BASE["sample"]["guidance"]["scale"] == 3  # nothing is shared with what a row changes


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        ([{"name": "a"}, {"name": "a"}], "two rows have this name"),
        ([{"title": "a"}], "name"),
        ([{"name": "a,b"}], "name"),
        ([{"name": "a", "base": "b"}, {"name": "b"}], "'b' is no row above it"),
        ([{"name": "a", "sampel": {}}], "did you mean 'sample'"),
        ([{"name": "a", "sample": 3}], "sample: settings are expected"),
        ([{"name": "a", "real": True, "sample": {}}], "has no base"),
        ([{"name": "a", "real": True}, {"name": "b", "base": "a"}], "cannot be a base"),
        ([{"name": "a", "identities": 3}], "sample.ids sets"),
        ([{"name": "a", "real": True, "identities": 1}], "identities"),
        ([{"name": "a", "images": "many"}], "images"),
        ([{"name": "a", "beside": "b"}], "'b' is no row of real faces above it"),
        ([{"name": "a"}, {"name": "b", "beside": "a"}], "'a' is no row of real faces above it"),
        ([{"name": "a", "real": True}, {"name": "b", "real": True, "beside": "a"}], "stands beside none"),
    ],
)
def test_mistakes_name_their_row(rows, says) -> None:
    with pytest.raises(UserError) as caught:
        expand_rows(rows, BASE)
    assert says in str(caught.value)


def test_rows_beside_real_faces_are_compared_with_them_unless_they_have_a_base() -> None:
    rows = [{"name": "real", "real": True}, {"name": "plus", "beside": "real"}, {"name": "more", "base": "plus"}]
    _, plus, more = expand_rows(rows, BASE)
    assert (plus.beside, plus.compared) == ("real", "real")
    assert (more.beside, more.compared) == ("real", "plus")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError, match="row 'a'.*row 'b'"):
        expand_rows([{"name": "a", "base": "x"}, {"name": "b", "base": "y"}], BASE)


def test_rows_are_picked_by_name() -> None:
    rows = expand_rows([{"name": "a"}, {"name": "b"}, {"name": "c"}], BASE)
    assert [row.name for row in select_rows(rows, "c, a")] == ["a", "c"]
    assert select_rows(rows, None) == rows
    for words in ("d", "", "a,,d"):
        with pytest.raises(UserError, match="known are a, b, c"):
            select_rows(rows, words)


def test_words_lie_under_the_rows() -> None:
    stages = ("ablate", "sample", "train-fr")
    sections = apply_words(BASE, ["sample.guidance.scale=2", "sample.ids=4", "ablate.images=12"], stages)
    assert sections["sample"] == {"per_id": 8, "ids": 4, "guidance": {"name": "cfg", "scale": 2}}
    assert sections["ablate"] == {"images": 12}
    for word in ("sample", "sample=3", "samples.ids=3", "sample..ids=3", "sample.ids=[", ".ids=3"):
        with pytest.raises(UserError):
            apply_words(BASE, [word], stages)


def test_a_table_is_a_recipe_with_one_more_section(tmp_path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("sample: {per_id: 3}\nablate: {rows: [{name: a}]}\n")
    assert load_recipe(str(path)) == {"sample": {"per_id": 3}}
    assert load_sections(str(path))["ablate"] == {"rows": [{"name": "a"}]}
