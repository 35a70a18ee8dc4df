"""`facesyn config` and `facesyn plugins`: what they list fits a terminal, and the same as JSON and YAML."""

from __future__ import annotations

import pytest

from facesyn_cli.config.recipe import STAGES
from facesyn_cli.plugins.builtin import BUILTIN, KINDS

ROLES = ("affects the result", "runtime-only", "growable", "batch size", "input")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("columns", ["80", "140"])
def test_settings_of_a_stage_fit_the_terminal(stage: str, columns: str, run_cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = run_cli("config", "--stage", stage).out
    assert max(map(len, text.splitlines())) <= int(columns)
    for entry in run_cli("config", "--stage", stage, "--json").json():
        keys = [inner["key"] for inner in entry["settings"]] or [entry["key"]]
        assert all(any(line.startswith(key) for line in text.splitlines()) for key in keys)
    assert "seed of everything random" in text and any(role in text for role in ROLES)


def test_a_recipe_marks_what_it_sets(run_cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    lines = run_cli("config", "small", "--stage", "train-ldm").out.splitlines()
    marked = {line.split()[0] for line in lines if " * " in line}
    assert "optimizer.lr" in marked and "optimizer.momentum" not in marked and lines[-1] == "* set by the recipe"
    assert "* set" not in run_cli("config", "--stage", "train-ldm").out


def test_json_keeps_its_keys(run_cli) -> None:
    entries = {entry["key"]: entry for entry in run_cli("config", "--stage", "sample", "--json").json()}
    assert {"key", "value", "role", "doc", "type", "settings"} == set(entries["ids"])
    assert entries["scheduler"]["value"] == {"name": "unipc", "steps": 20, "spacing": "trailing"}
    assert [inner["key"] for inner in entries["scheduler"]["settings"]][0] == "scheduler.name"


def test_yaml_starts_a_recipe(run_cli, assert_refused, tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(run_cli("config", "--stage", "select", "--yaml").out.replace("r: 0.4", "r: 0.5"), "utf-8")
    assert "r: 0.5" in recipe.read_text("utf-8")
    entries = {entry["key"]: entry for entry in run_cli("config", recipe, "--stage", "select", "--json").json()}
    assert entries["r"]["value"] == 0.5 and entries["collisions"]["value"] == "drop"
    assert_refused("config", "--yaml", says="--yaml needs a stage: --stage NAME")
    assert_refused("config", "--stage", "sampel", says="did you mean 'sample'?")


def test_recipes_and_plugins_have_one_line_each(run_cli, monkeypatch) -> None:
    assert any(line.startswith("small  ") and "laptop" in line for line in run_cli("config").out.splitlines())
    for kind, names in BUILTIN.items():
        lines = run_cli("plugins", kind).out.splitlines()
        assert [line.split()[0] for line in lines[1:]] == sorted(names)
        assert all(len(line.split()) > 1 for line in lines), kind
    monkeypatch.setenv("COLUMNS", "80")
    text = run_cli("plugins").out
    assert max(map(len, text.splitlines())) <= 80
    assert all(any(line.startswith(f"{kind} ") for line in text.splitlines()) for kind in KINDS)
