"""`facesyn run`: all stages of a recipe in order."""

from itertools import starmap
from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli import console
from facesyn_cli.cli.stage_command import DEFAULT_WORK, Config, Device, Json, LogFile, print_result, section_text, start
from facesyn_cli.errors import UserError

EXAMPLES = (
    "facesyn run --config admis --work runs/a",
    "facesyn run --config admis --work runs/a --from sample --to train-fr",
    "facesyn run --config small --work runs/b --dry-run sample.ids=100",
)


def command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="STAGE.KEY=VALUE", help="Settings, for example sample.ids=100.")
    ] = None,
    config: Config = None,
    work: Annotated[Path, typer.Option(help="Folder of the run.")] = DEFAULT_WORK,
    tree: Annotated[
        Path | None, typer.Option(help="Directory in the layout of ADMIS; stages whose output it holds are skipped.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="First stage to run.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last stage to run.")] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan of each stage and exit.")] = False,
    json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Run all stages of a recipe, skipping finished ones."""
    from facesyn_cli.config.recipe import load_recipe

    start(log_file)
    if config is None:
        raise UserError("run needs a recipe: --config NAME or FILE (facesyn config lists the built-in ones)")
    from facesyn_cli.pipelines.run import run_recipe

    flags = {"device": device, "seed": seed}
    results = run_recipe(load_recipe(config), work, overrides or [], flags, first, last, dry_run, tree)
    if console.is_first_process():
        print_result(results, json, lambda results: "\n".join(starmap(section_text, results.items())))
