"""`facesyn run`: all stages of a recipe in order, skipping what is finished."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli import console
from facesyn_cli.cli.stage_command import (
    DEFAULT_WORK,
    print_json,
    resolve_stage,
    run_stage,
    stage_module,
    start,
)
from facesyn_cli.console import log
from facesyn_cli.errors import UserError


def command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE.KEY=VALUE]...", help="Settings, for example sample.ids=100.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Recipe: a YAML file or the name of a built-in one.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the run.")] = DEFAULT_WORK,
    first: Annotated[str | None, typer.Option("--from", help="First stage to run.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last stage to run.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan of each stage; do nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write messages to this file.")] = None,
) -> None:
    """Run all stages of a recipe, skipping finished ones."""
    from facesyn_cli.config.recipe import load_recipe

    start(log_file)
    if config is None:
        raise UserError("run needs a recipe: --config NAME or FILE (facesyn config lists the built-in ones)")
    sections = load_recipe(config)
    results = run_recipe(sections, work, overrides or [], {"device": device, "seed": seed}, first, last, dry_run)
    if not console.is_first_process():
        return
    if json:
        print_json(results)
        return
    from facesyn_cli.artifacts.outcome import render_summary

    for name, summary in results.items():
        typer.echo(f"{name}\n" + "\n".join(f"  {line}" for line in render_summary(summary).splitlines()))


def run_recipe(
    sections: dict[str, dict[str, Any]],
    work: Path,
    overrides: list[str],
    flags: dict[str, Any],
    first: str | None = None,
    last: str | None = None,
    dry_run: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run (or plan) the stages that the recipe has a section for, in the order of the data.

    All sections are validated before the first stage starts.

    Raises:
        UserError: A stage name, setting or input is wrong; earlier stages keep their finished work.
    """
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.recipe import STAGES

    for name in (first, last):
        if name is not None and name not in STAGES:
            raise UserError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
    wanted = STAGES[STAGES.index(first) if first else 0 : STAGES.index(last) + 1 if last else None]
    names = [name for name in wanted if name in sections]
    if not names:
        raise UserError(f"the recipe has no section for {', '.join(wanted) or 'the asked stages'}")
    words: dict[str, list[str]] = {name: [] for name in STAGES}
    for word in overrides:
        stage, _, rest = word.partition(".")
        if stage not in words or "=" not in rest:
            raise UserError(f"{word!r} is not stage.key=value; stages are {', '.join(STAGES)}")
        words[stage].append(rest)
    configs = {name: resolve_stage(name, sections[name], words[name], flags) for name in names}
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names, 1):
        if dry_run:
            results[name] = _plan(name, configs[name], Work(work))
            continue
        log.info(f"[{number}/{len(names)}] {name}")
        outcome = run_stage(name, configs[name], Work(work))
        results[name] = {**outcome.summary, "folder": str(outcome.folder)}
    return results


def _plan(name: str, cfg: Any, work: Any) -> dict[str, Any]:
    """Plan one stage; inputs that an earlier stage has yet to make are said, not refused."""
    try:
        return stage_module(name).plan(cfg, work)
    except UserError as error:
        return {"not_yet": str(error)}
