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
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.text_tables import Block


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
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.cli import next_step
    from facesyn_cli.pipelines.run import run_recipe

    flags = {"device": device, "seed": seed}
    results = run_recipe(load_recipe(config), work, overrides or [], flags, first, last, dry_run, tree)
    print_result(results, json, _plans if dry_run else _blocks)
    made = {stage: Path(result["folder"]) for stage, result in results.items() if "folder" in result}
    if made and not dry_run:
        given = {"config": config, "work": None if work == DEFAULT_WORK else work, "tree": tree, **flags}
        next_step.show(next_step.after_stage(*list(made.items())[-1], Work(work), given, OPTIONS), json)


def _plans(plans: dict[str, dict[str, Any]]) -> str:
    return "\n".join(section_text(stage, plan) for stage, plan in plans.items())


def _blocks(results: dict[str, dict[str, Any]]) -> list[Block]:
    """Return one row for each stage, and the table of the benchmarks where there is one."""
    from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
    from facesyn_cli.artifacts.text_tables import Column, Table

    rows = [[stage, _figures(stage, result), result.get("folder", result.get("reason", ""))]
            for stage, result in results.items()]
    blocks: list[Block] = [Table(
        [Column("stage", is_text=True), Column("result", is_text=True), Column("folder", is_text=True, rank=1)], rows
    )]
    if (evaluated := results.get("eval", {})).get("rows"):
        blocks.append(BenchmarkTable.model_validate(
            {key: evaluated[key] for key in BenchmarkTable.model_fields}
        ).to_table())
    return blocks


def _figures(stage: str, result: dict[str, Any]) -> str:
    """Return the counts and measured numbers of a stage in one line; of a table or report, how much it holds."""
    from facesyn_cli.artifacts.outcome import show_value

    key, title = {"eval": ("rows", "benchmark"), "study": ("rows", "row"), "report": ("summary", "finding")}.get(
        stage, ("", "")
    )
    if isinstance(result.get(key), list):
        return f"{len(result[key])} {title}{'' if len(result[key]) == 1 else 's'}"
    numbers = {key.replace("_", " "): value for key, value in result.items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return ", ".join(f"{show_value(value)} {name}" if isinstance(value, int) else f"{name} {show_value(value)}"
                     for name, value in numbers.items()) or str(result.get("state", ""))
