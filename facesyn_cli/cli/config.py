"""`facesyn config`: list recipes, show one, or show the settings of a stage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.setting_listing import list_settings, text_table
from facesyn_cli.cli.stage_command import Json, merge_groups, print_json, print_result, section_of, start

EXAMPLES = (
    "facesyn config",
    "facesyn config --stage sample",
    "facesyn config --stage train-fr --yaml",
)


def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Recipe to show: a YAML file or a built-in name.")
    ] = None,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Show every setting of one stage.")] = None,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="With --stage: as a commented section to start a recipe from.")
    ] = False,
    copy: Annotated[Path | None, typer.Option(metavar="FILE", help="Copy the recipe to this file.")] = None,
    json: Json = False,
) -> None:
    """Show recipes and the settings of stages."""
    from facesyn_cli.config import recipe as recipes
    from facesyn_cli.errors import UserError
    from facesyn_cli.pipelines.stage import resolve_stage

    start()
    if stage is not None:
        _show_stage(recipes.check_stage(stage), recipe, yaml, json)
        return
    if yaml:
        raise UserError("--yaml needs a stage: --stage NAME, for example sample")
    if recipe is None:
        found = {name: recipes.recipe_about(name) for name in recipes.recipe_names()}
        print_result(found, json, lambda found: text_table(("recipe", "about"), list(found.items())))
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


def _show_stage(stage: str, recipe: str | None, as_yaml: bool, as_json: bool) -> None:
    from facesyn_cli.config.setting_rows import setting_rows, yaml_section
    from facesyn_cli.pipelines.stage import resolve_stage

    cfg = resolve_stage(stage, section_of(recipe, stage), [], {})
    rows = setting_rows(cfg)
    if as_yaml:
        of = f"of recipe {recipe}" if recipe else "by default"
        typer.echo(f"# Settings of {stage} {of}; delete what you do not change.\n"
                   f"# facesyn {stage} --config FILE\n\n{yaml_section(stage, rows)}", nl=False)
    elif as_json:
        print_json(_by_field(cfg, rows))
    else:
        defaults = {row.key: row.value for row in setting_rows(resolve_stage(stage, {}, [], {}))}
        changed = {row.key for row in rows if row.key not in defaults or row.value != defaults[row.key]}
        typer.echo(list_settings(rows, changed) + ("\n\n* set by the recipe" if changed else ""))


def _by_field(cfg: Any, rows: list[Any]) -> list[dict[str, Any]]:
    """Return one entry for each field of the config, with those of a nested section in `settings`."""
    from facesyn_cli.config.fields import role_of

    values = merge_groups(cfg.to_json())
    entries = []
    for key, info in type(cfg).model_fields.items():
        inner = [vars(row) for row in rows if row.key.startswith(f"{key}.")]
        own = next((row for row in rows if row.key in (key, f"{key}.name")), None)
        entry = {"key": key, "value": values.get(key), "role": role_of(info), "doc": info.description or ""}
        entries.append(entry | {"type": own.type if own else "", "settings": inner})
    return entries
