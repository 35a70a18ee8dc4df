"""Shared by all commands: common options, from options to a finished stage, and printing.

A command file of a stage holds one function decorated with `stage_command`. Its parameters are the everyday options of
the command, each the setting of the same name. Every other setting is given as `key=value`. A function with a parameter
`overrides` reads these words itself and returns the remaining ones.
"""

from __future__ import annotations

import inspect
import json as json_format
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from facesyn_cli import console, launch, signals

if typing.TYPE_CHECKING:
    from facesyn_cli.artifacts.plan import Plan
    from facesyn_cli.config.fields import StageConfig

DEFAULT_WORK = Path("work")

# Optional options by stage; the other options of `_COMMON` belong to every stage. `--seed` and `--device` are accepted
# but not shown by the other stages. A test compares this table with the config classes and with what trees and starters
# hold, which are not imported here: that takes seconds.
OPTIONS = {
    "align": "shard",
    "augment": "tree seed",
    "embed": "tree starter batch_size shard device",
    "eval": "tree batch_size device",
    "gen-contexts": "tree starter seed batch_size shard device",
    "pack": "tree seed shard",
    "report": "tree seed batch_size device",
    "sample": "tree starter seed batch_size shard device",
    "select": "tree",
    "study": "tree starter seed batch_size device",
    "train-autoencoder": "tree seed batch_size device",
    "train-decoder": "seed batch_size device",
    "train-embedder": "tree seed batch_size device",
    "train-fr": "tree seed batch_size device",
    "train-ldm": "tree starter seed batch_size device",
}
_OPTIONAL = {"tree", "starter", "batch_size", "shard"}
Config = Annotated[str | None, typer.Option(help="Recipe: a YAML file or the name of a built-in one.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
LogFile = Annotated[Path | None, typer.Option(help="Also write messages to this file.")]

_COMMON: dict[str, Any] = {
    "overrides": Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe section.")
    ],
    "config": Config,
    "work": Annotated[Path | None, typer.Option(help="Folder of the run; default ./work.")],
    "tree": Annotated[
        Path | None, typer.Option(help="Directory in the layout of ADMIS, for inputs not given otherwise.")
    ],
    "starter": Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Starter with networks and contexts: a folder, or the word packaged."),
    ],
    "out": Annotated[Path | None, typer.Option(help="Write here instead of the stage's folder in --work.")],
    "seed": Annotated[int | None, typer.Option(help="Seed of everything random.")],
    "batch_size": Annotated[str | None, typer.Option(metavar="N", help="Images per batch; sample also takes auto.")],
    "shard": Annotated[str | None, typer.Option(metavar="I/N", help="Make part I of N, counted from 1.")],
    "device": Device,
    "dry_run": Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved config and the plan, and exit.")
    ],
    "json": Json,
    "log_file": LogFile,
}
_HIDDEN: dict[str, Any] = {
    "seed": Annotated[int | None, typer.Option(hidden=True)], "device": Annotated[str | None, typer.Option(hidden=True)]
}


def stage_command(
    name: str, keys: dict[str, str] | None = None
) -> Callable[[Callable[..., dict[str, Any] | None]], Callable[..., None]]:
    """Turn a function whose parameters are options into a complete command.

    What the function returns replaces settings that are not simply the value of an option.

    Args:
        name: Name of the command, of its stage and of its recipe section.
        keys: Parameter -> dotted setting, where it is not the setting of the same name.
    """
    def decorate(flags: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
        own = inspect.signature(flags, eval_str=True).parameters
        options = OPTIONS[name].split()
        common = [key for key in _COMMON if key not in own and (key not in _OPTIONAL or key in options)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
        parameters += [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY,
                annotation=_HIDDEN[key] if key in _HIDDEN and key not in options else _COMMON[key],
                default=False if key in ("dry_run", "json") else None,
            )
            for key in common
        ]

        def command(**values: Any) -> None:
            given = SimpleNamespace(**{key: values.pop(key) if key in common else None for key in _COMMON})
            settings = {(keys or {}).get(key, key): None if value == [] else value for key, value in values.items()}
            settings |= flags(**values) or {}
            given.overrides = settings.pop("overrides", given.overrides)
            _execute(name, settings, given)

        command.__doc__ = flags.__doc__
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _execute(name: str, flags: dict[str, Any], common: SimpleNamespace) -> None:
    """Resolve the config of one stage, then plan or run it and print the result."""
    start(common.log_file)
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.pipelines.inputs import configure
    from facesyn_cli.pipelines.stage import Request, plan_stage, run_stage

    flags = flags | {key: getattr(common, key) for key in ("out", "seed", "device", "batch_size", "shard")}
    request = Request(name, section_of(common.config, name), common.overrides or [], flags)
    work = Work(common.work or DEFAULT_WORK)
    is_bare = common.work is None and common.config is None  # a mistyped folder never yields faces of the starter
    cfg = configure(request, work, common.tree, common.starter, use_packaged=is_bare)
    if common.dry_run:
        print_plan(cfg, plan_stage(name, cfg, work), common.json)
        return
    outcome = run_stage(name, cfg, work)
    if console.is_first_process():
        result = {**outcome.summary, "folder": str(outcome.folder)}
        print_result(result, common.json, lambda result: f"{outcome.render()}\nfolder: {outcome.folder}")


def start(log_file: Path | None = None) -> None:
    """Set up messages and stop signals; every command calls it first."""
    if log_file is not None:
        console.log_to(log_file)
    signals.install()
    launch.stop_with_launcher()


def section_of(recipe: str | None, name: str) -> dict[str, Any]:
    """Return the section of one stage in a recipe, empty without a recipe."""
    from facesyn_cli.config.recipe import load_recipe

    return load_recipe(recipe).get(name, {}) if recipe else {}


def split_names(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated option, None where it is not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def print_plan(cfg: StageConfig, plan: Plan, as_json: bool) -> None:
    """Print the resolved config and the plan to stdout."""
    import yaml

    if not console.is_first_process():
        return
    settings, planned = cfg.to_json(), plan.to_json()
    if as_json:
        print_json({"config": settings, "plan": planned})
    else:
        sys.stdout.write(yaml.safe_dump({"config": merge_groups(settings)}, sort_keys=True, allow_unicode=True))
        sys.stdout.write(f"\n{section_text('plan', planned)}\n")


def section_text(title: str, values: dict[str, Any]) -> str:
    """Return a title and indented lines of what is known."""
    from facesyn_cli.artifacts.outcome import render_summary

    known = {key: value for key, value in values.items() if value not in (None, {})}
    return "\n".join([title, *(f"  {line}" for line in render_summary(known).splitlines())])


def merge_groups(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of all roles as one mapping; nested sections are merged."""
    merged: dict[str, Any] = {}

    def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value.copy() if isinstance(value, dict) else value

    for group in settings.values():
        merge(merged, group)
    return merged


def print_result(value: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print a result to stdout, as JSON or as the text that `render` makes of it; only the first process does."""
    if not console.is_first_process():
        return
    if as_json:
        print_json(value)
    else:
        typer.echo(render(value))


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json_format.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
