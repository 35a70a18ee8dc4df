"""Every recipe loads, and every section of it resolves."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli.config.recipe import find_recipe, load_recipe, recipe_folder, recipe_names
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.stage import resolve_stage

RECIPES = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_resolves(path: Path) -> None:
    sections = load_recipe(str(path))
    assert sections
    for stage, section in sections.items():
        resolve_stage(stage, section, [], {})


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# "), "the first line of a recipe is a comment that says what it is for"


def test_built_in_recipes_are_found_by_name() -> None:
    assert {"admis", "demo"} <= set(recipe_names())
    assert find_recipe("admis") == recipe_folder() / "admis.yaml"


def test_mistakes_are_named_with_the_nearest_right_name(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sampel: {ids: 3}\n")
    with pytest.raises(UserError, match="did you mean 'sample'"):
        load_recipe(str(recipe))
    with pytest.raises(UserError, match="did you mean 'admis'"):
        load_recipe("admiss")


@pytest.mark.parametrize("text", ["- a\n- b\n", "sample: 3\n", "a: [", "sample: !!python/object/apply:os.system [x]\n"])
def test_broken_recipes_are_refused(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError):
        load_recipe(str(recipe))


def test_wheel_and_checkout_have_the_same_recipes() -> None:
    assert RECIPES, "configs/ is empty"
    assert {p.stem for p in RECIPES} == {Path(n).name for n in recipe_names()}
