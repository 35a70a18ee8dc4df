"""Settings as rows and as YAML: every stage, and the file that completion reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from write_setting_table import FILE, as_text, table

from facesyn_cli.config.fields import GROUPS
from facesyn_cli.config.recipe import STAGES, load_recipe
from facesyn_cli.config.setting_rows import ROLES, SECTION, plugin_rows, setting_rows, type_text, yaml_section
from facesyn_cli.pipelines.stage import resolve_stage
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN


@pytest.mark.parametrize("stage", STAGES)
def test_the_yaml_of_a_stage_loads_and_resolves_to_the_same_settings(stage: str, tmp_path: Path) -> None:
    for section in ({}, load_recipe("small").get(stage, {})):
        cfg = resolve_stage(stage, section, [], {})
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(yaml_section(stage, setting_rows(cfg)), encoding="utf-8")
        again = load_recipe(str(recipe))
        assert resolve_stage(stage, again[stage], [], {}) == cfg
        assert not [key for key, value in again[stage].items() if value is None], "null inputs hide those of a run"


def test_rows_have_the_settings_of_the_chosen_plugins() -> None:
    rows = {row.key: row for row in setting_rows(resolve_stage("sample", {}, ["scheduler.name=ddim"], {}))}
    assert rows["scheduler.name"].plugin == "scheduler" and rows["scheduler.name"].value == "ddim"
    assert rows["scheduler.eta"].type == "float" and "scheduler.spacing" not in rows
    assert rows["precision"].choices == ("fp32", "bf16", "fp16", "auto")
    assert rows["ids"].role == "growable" and rows["ldm"].role == "input" and rows["device"].role == "runtime"
    assert rows["noise"].type == SECTION and rows["noise"].value_text == "" and rows["noise.file"].value_text == "null"
    assert "None" not in rows["ids"].doc_text and "null: all" in rows["ids"].doc_text
    assert set(ROLES) == set(GROUPS)


def test_a_section_that_is_not_given_shows_what_it_would_hold() -> None:
    given, absent = (
        {row.key: row for row in setting_rows(resolve_stage("train-ldm", {}, words, {}))}
        for words in (["perceptual.maps=3"], [])
    )
    assert (given["perceptual.weight"].value_text, given["perceptual.maps"].value_text) == ("1.0", "3")
    assert (absent["perceptual.weight"].value_text, absent["perceptual.maps"].value_text) == ("(1.0)", "(2)")
    assert "  # perceptual:\n" in yaml_section("train-ldm", list(absent.values()))


def test_a_list_of_plugins_shows_the_settings_that_are_not_defaults() -> None:
    cfg = resolve_stage("train-fr", {"transforms": ["flip", {"name": "random-erasing", "p": 0.25}]}, [], {})
    row = next(row for row in setting_rows(cfg) if row.key == "transforms")
    assert row.value == ["flip", {"name": "random-erasing", "p": 0.25}] and row.type == "list of transform plugins"


def test_types_are_words() -> None:
    for annotation, text in (
        (int, "int"), (float | None, "float"), (bool, "true | false"), (str | None, "text"), (Path, "path"),
        (list[Path], "list of paths"), (tuple[int, ...], "list of ints"), (tuple[float, float], "2 x float"),
        (Literal["a", "b"] | None, "a | b"), (int | Literal["auto"], "int | auto"), (Annotated[int, "x"], "int"),
        (dict[str, int], "mapping"),
    ):
        assert type_text(annotation) == text, annotation


def test_a_plugin_has_rows_without_its_name() -> None:
    assert [row.key for row in plugin_rows(registry.get("head", "arcface"))] == ["scale", "margin"]


def test_every_setting_inside_a_section_or_plugin_says_what_it_is() -> None:
    rows = {f"{stage} {row.key}": row for stage in STAGES for row in setting_rows(resolve_stage(stage, {}, [], {}))}
    for kind, names in BUILTIN.items():
        for name in names:
            rows |= {f"{kind} {name} {row.key}": row for row in plugin_rows(registry.get(kind, name))}
    assert not [key for key, row in rows.items() if not row.doc]


def test_the_table_of_settings_is_that_of_the_config_classes() -> None:
    assert FILE.read_text(encoding="utf-8") == as_text(table()), "run: python tests/write_setting_table.py"
