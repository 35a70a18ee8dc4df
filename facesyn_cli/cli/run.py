"""`facesyn run`: all stages of a recipe in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facesyn_cli.cli.stage_command import (
    DEFAULT_WORK,
    OPTIONS,
    Config,
    Device,
    Json,
    LogFile,
    print_result,
    section_text,
    start,
)
from facesyn_cli.console import is_first_process
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.text_tables import Block

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
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw a picture of the pipeline and exit.")
    ] = None,
    json: Json = False,
    log_file: LogFile = None,
) -> None:
    """Run all stages of a recipe, skipping finished ones."""
    from facesyn_cli.config.recipe import load_recipe

    start(log_file)
    if config is None:
        raise UserError("run needs a recipe: `facesyn init` writes one for your photos; or --config NAME of a built-in "
                        "one (`facesyn config` lists them)")
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.cli import next_step
    from facesyn_cli.pipelines.open_inputs import OpenInputs
    from facesyn_cli.pipelines.run import run_recipe

    flags = {"device": device, "seed": seed}
    if draw is not None:
        _draw(draw, config, work, overrides or [], flags, first, last)
        return
    try:
        results = run_recipe(load_recipe(config), work, overrides or [], flags, first, last, dry_run, tree)
    except OpenInputs as error:
        options = {"config": config, "work": work, "tree": tree, "from": first, "to": last, "device": device,
                   "seed": seed}
        raise OpenInputs(error.words, _command_line(options, [*(overrides or []), *error.words])) from error
    print_result(results, json, _plans if dry_run else _blocks)
    made = {stage: Path(result["folder"]) for stage, result in results.items() if "folder" in result}
    if made and not dry_run:
        given = {"config": config, "work": None if work == DEFAULT_WORK else work, "tree": tree, **flags}
        next_step.show(next_step.after_stage(*list(made.items())[-1], Work(work), given, OPTIONS), json)


def _draw(
    file: Path, config: str, work: Path, overrides: list[str], flags: dict[str, Any], first: str | None,
    last: str | None,
) -> None:
    """Write the picture of the recipe's pipeline."""
    from facesyn_cli.artifacts.atomic_files import write_text
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.recipe import find_recipe, load_recipe
    from facesyn_cli.pipelines.picture import draw_recipe
    from facesyn_cli.pipelines.run import resolve_recipe

    if file.suffix.lower() != ".svg":
        raise UserError(f"--draw writes SVG: name a file that ends in .svg, not {file}")
    configs = resolve_recipe(load_recipe(config), overrides, flags, first, last)
    options = {"config": config, "work": work if work.exists() else None, "from": first, "to": last, "draw": file.name}
    picture = draw_recipe(find_recipe(config).stem, configs, Work(work), _command_line(options, overrides))
    if is_first_process():
        write_text(file, picture)
        typer.echo(file)


def _command_line(options: dict[str, Any], overrides: list[str]) -> str:
    """Return a call of this command as a line to paste."""
    import shlex

    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["facesyn", "run", *given, *overrides])


def _plans(plans: dict[str, dict[str, Any]]) -> str:
    return "\n".join(section_text(stage, plan) for stage, plan in plans.items())


def _blocks(results: dict[str, dict[str, Any]]) -> list[Block]:
    """Return one row for each stage, and the table of the benchmarks where there is one."""
    from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
    from facesyn_cli.artifacts.text_tables import Column, Table

    columns = [Column("stage", is_text=True), Column("time"), Column("result", is_text=True),
               Column("folder", is_text=True, rank=1)]
    rows = [[stage, _time(result), _figures(stage, result), result.get("folder", result.get("reason", ""))]
            for stage, result in results.items()]
    blocks: list[Block] = [Table(columns, rows)]
    if (evaluated := results.get("eval", {})).get("rows"):
        blocks.append(BenchmarkTable.model_validate(
            {key: evaluated[key] for key in BenchmarkTable.model_fields}
        ).to_table())
    return blocks


def _time(result: dict[str, Any]) -> str:
    """Return the time of a stage of this run, or why there is none."""
    from facesyn_cli.progress import format_seconds

    return format_seconds(result["seconds"]) if result["state"] == "done" else result["state"].removeprefix("done ")


def _figures(stage: str, result: dict[str, Any]) -> str:
    """Return the counts and measured numbers of a stage in one line; of a table or report, how much it holds."""
    from facesyn_cli.artifacts.outcome import show_value

    key, title = {"eval": ("rows", "benchmark"), "study": ("rows", "row"), "report": ("summary", "finding")}.get(
        stage, ("", "")
    )
    if isinstance(result.get(key), list):
        return f"{len(result[key])} {title}{'' if len(result[key]) == 1 else 's'}"
    numbers = {key.replace("_", " "): value for key, value in result.items()
               if key != "seconds" and isinstance(value, (int, float)) and not isinstance(value, bool)}
    return ", ".join(f"{show_value(value)} {name}" if isinstance(value, int) else f"{name} {show_value(value)}"
                     for name, value in numbers.items())
