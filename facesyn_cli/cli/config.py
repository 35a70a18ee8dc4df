"""`facesyn config`: list recipes, show one, or show the settings of a stage."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import Json, merge_groups, print_json, print_result, section_of, start

EXAMPLES = (
    "facesyn config",
    "facesyn config --stage sample",
    "facesyn config small --copy mine.yaml",
)


def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Recipe to show: a YAML file or a built-in name.")
    ] = None,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Show every setting of one stage.")] = None,
    copy: Annotated[Path | None, typer.Option(metavar="FILE", help="Copy the recipe to this file.")] = None,
    json: Json = False,
) -> None:
    """Show recipes and the settings of stages."""
    from facesyn_cli.config import recipe as recipes
    from facesyn_cli.errors import UserError
    from facesyn_cli.pipelines.stage import resolve_stage

    start()
    if stage is not None:
        if stage not in recipes.STAGES:
            raise UserError(f"unknown stage {stage!r}; stages are {', '.join(recipes.STAGES)}")
        _show_stage(stage, recipe, json)
        return
    if recipe is None:
        found = {name: _first_comment(recipes.find_recipe(name)) for name in recipes.recipe_names()}
        print_result(found, json, lambda found: "\n".join(f"{name:20} {about}" for name, about in found.items()))
        return
    path = recipes.find_recipe(recipe)
    sections = recipes.load_recipe(recipe)
    for name, section in sections.items():  # refuses a recipe with a mistake
        resolve_stage(name, section, [], {})
    if copy is not None:
        from facesyn_cli.artifacts.atomic_directory import atomic_file

        with atomic_file(copy) as made:
            made.write_bytes(path.read_bytes())
        typer.echo(str(copy))
    elif json:
        print_json(sections)
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)


def _show_stage(stage: str, recipe: str | None, json: bool) -> None:
    from facesyn_cli.config.fields import role_of
    from facesyn_cli.pipelines.stage import config_class_of, resolve_stage

    cfg = resolve_stage(stage, section_of(recipe, stage), [], {})
    values = merge_groups(cfg.to_json())
    rows = [
        {"key": key, "value": values.get(key), "role": role_of(info), "doc": info.description or ""}
        for key, info in config_class_of(stage).model_fields.items()
    ]
    line = "{key}: {value}  # {doc} [{role}]".format_map
    print_result(rows, json, lambda rows: "\n".join(map(line, rows)))


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
