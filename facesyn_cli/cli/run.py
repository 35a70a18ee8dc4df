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
    tree: Annotated[
        Path | None, typer.Option(help="Directory laid out as ADMIS describes; go on from what is there.")
    ] = None,
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
    flags = {"device": device, "seed": seed}
    results = run_recipe(sections, work, overrides or [], flags, first, last, dry_run, tree)
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
    tree: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Run (or plan) the stages that the recipe has a section for, in the order of the data.

    All sections are validated before the first stage starts. With a published tree, stages whose work it holds are
    skipped, unless they are named by `first` or by a setting, or have begun in the work folder.

    Args:
        sections: Settings of each stage.
        work: Work folder.
        overrides: `stage.key=value` words.
        flags: Settings for every stage.
        first: First stage to run.
        last: Last stage to run.
        dry_run: Plan only.
        tree: Directory laid out as ADMIS describes.

    Returns:
        What each stage has to say; of a skipped one why it was.

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
    if tree is not None:
        forced = {name for name in names if words[name] or name == first}
        configs, skipped = _with_tree(tree, configs, sections, words, flags, forced, Work(work))
        results = {name: {"skipped": reason} for name, reason in skipped.items()}
        names = list(configs)
    for number, name in enumerate(names, 1):
        if dry_run:
            results[name] = _plan(name, configs[name], Work(work), sections[name])
            continue
        log.info(f"[{number}/{len(names)}] {name}")
        outcome = run_stage(name, configs[name], Work(work))
        results[name] = {**outcome.summary, "folder": str(outcome.folder)}
    return results


def _with_tree(
    path: Path,
    configs: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    words: dict[str, list[str]],
    flags: dict[str, Any],
    forced: set[str],
    work: Any,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configs of the stages that are left to do, with what the tree holds for them, and the skipped ones."""
    from facesyn_cli.artifacts.published_tree import USES, PublishedTree
    from facesyn_cli.cli.tree_inputs import OUTPUTS, keep_benchmarks, say, stages_left, stated_keys, tree_inputs

    tree = PublishedTree.open(path)
    stated = {name: stated_keys(sections[name], words[name], flags) for name in configs}
    left, skipped = stages_left(tree, configs, stated, forced, work)
    made = {OUTPUTS[name] for name in left if name in OUTPUTS}
    found = {}
    for name in left:
        has_others = name == "augment" and "contexts" in stated.get("sample", ())  # the tree's faces are not theirs
        coming = made | {"contexts"} if has_others else made
        if name in USES:
            found[name] = tree_inputs(tree, name, configs[name], stated[name], work, coming)
        if name == "eval" and "benchmarks" not in stated_keys({}, words[name], flags):
            keep_benchmarks(tree, found[name], configs[name])
    say(found, skipped)
    for name, inputs in found.items():
        configs[name] = resolve_stage(name, {**sections[name], **inputs.settings}, words[name], flags)
    return {name: configs[name] for name in left}, skipped


def _plan(name: str, cfg: Any, work: Any, section: dict[str, Any]) -> dict[str, Any]:
    """Plan one stage; inputs that an earlier stage has yet to make are said, with its settings, not refused."""
    try:
        planned = stage_module(name).plan(cfg, work)
        return planned if isinstance(planned, dict) else planned.to_json()
    except UserError as error:
        return {"not_yet": str(error), **({"settings": section} if section else {})}
