"""`facesyn run`: all stages of a recipe in order."""

from itertools import starmap
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli import console
from facesyn_cli.cli.stage_command import DEFAULT_WORK, Config, Device, Json, LogFile, print_result, section_text, start
from facesyn_cli.errors import UserError


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
        raise UserError("run needs a recipe: `facesyn init` writes one for your photos; or --config NAME of a built-in "
                        "one (`facesyn config` lists them)")
    from facesyn_cli.pipelines.open_inputs import OpenInputs
    from facesyn_cli.pipelines.run import run_recipe

    flags = {"device": device, "seed": seed}
    try:
        results = run_recipe(load_recipe(config), work, overrides or [], flags, first, last, dry_run, tree)
    except OpenInputs as error:
        options = {"config": config, "work": work, "tree": tree, "from": first, "to": last, "device": device,
                   "seed": seed}
        raise OpenInputs(error.words, _command_line(options, [*(overrides or []), *error.words])) from error
    if console.is_first_process():
        print_result(results, json, lambda results: "\n".join(starmap(section_text, results.items())))


def _command_line(options: dict[str, Any], overrides: list[str]) -> str:
    """Return a call of this command as a line to paste."""
    import shlex

    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["facesyn", "run", *given, *overrides])
