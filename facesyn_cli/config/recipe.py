"""Recipes: YAML files with one section per stage, given by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli.console import log
from facesyn_cli.errors import UserError, did_you_mean
from facesyn_cli.untrusted.parsing import read_yaml

STAGES = (
    "align", "embed", "train-embedder", "train-autoencoder", "train-identity", "train-ldm", "gen-contexts", "sample",
    "augment", "pack", "train-fr", "eval", "report", "select", "study",
)
TABLE = "ablate"  # section with the rows of an ablation table; see `config/ablation_rows.py`


def check_stage(name: str) -> str:
    """Return the name of a stage.

    Raises:
        UserError: There is no such stage.
    """
    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}{did_you_mean(name, STAGES)}")
    return name


def recipe_folder() -> Path:
    """Return the folder of the built-in recipes."""
    inside = Path(__file__).resolve().parents[1] / "configs"  # in an installed wheel
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    return sorted(p.relative_to(recipe_folder()).with_suffix("").as_posix() for p in recipe_folder().rglob("*.yaml"))


def recipe_about(name: str) -> str:
    """Return the comment in the first line of a recipe; empty if there is none."""
    with find_recipe(name).open(encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def find_recipe(name: str) -> Path:
    """Return the path of a recipe given by its path or the name of a built-in one."""
    path = Path(name)
    if path.is_file():
        return path
    built_in = recipe_folder() / f"{name}.yaml"
    if built_in.is_file() and ".." not in name:
        return built_in
    hint = did_you_mean(name, recipe_names())
    raise UserError(f"no recipe file {name} and no built-in recipe of that name{hint} (facesyn config lists all)")


def load_recipe(name: str) -> dict[str, dict[str, Any]]:
    """Read a recipe and return its sections by stage name, without the rows of an ablation table.

    Raises:
        UserError: No such recipe, invalid YAML, or a section that is not a stage.
    """
    return {section: settings for section, settings in load_sections(name).items() if section != TABLE}


def load_sections(name: str) -> dict[str, dict[str, Any]]:
    """Read a recipe and return all its sections; see `load_recipe`."""
    path = find_recipe(name)
    content = read_yaml(path, "a recipe")
    log.debug(f"recipe: {path}")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"recipe {path} must be a mapping of stage names to settings, found {type(content).__name__}")
    problems = []
    for section, settings in content.items():
        if section not in (*STAGES, TABLE):
            problems.append(f"unknown section {section!r}{did_you_mean(section, (*STAGES, TABLE))}")
        elif settings is not None and not isinstance(settings, dict):
            problems.append(f"section {section!r} must hold settings, found {settings!r}")
    if problems:
        raise UserError(f"recipe {path}: {'; '.join(problems)}")
    return {section: settings or {} for section, settings in content.items()}
