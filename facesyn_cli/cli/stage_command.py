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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from facesyn_cli import console, launch, signals
from facesyn_cli.errors import UserError

if typing.TYPE_CHECKING:
    from facesyn_cli.artifacts.plan import Plan
    from facesyn_cli.artifacts.text_tables import Block
    from facesyn_cli.config.fields import StageConfig

DEFAULT_WORK = Path("work")

# Optional options by stage; the other options of `_COMMON` belong to every stage. `--seed` and `--device` are accepted
# but not shown by the other stages. A test compares this table with the config classes and with what trees and starters
# hold, which are not imported here: that takes seconds.
OPTIONS = {
    "align": "shard",
    "augment": "tree seed",
    "embed": "tree starter batch_size shard device",
    "eval": "tree batch_size device markdown",
    "gen-contexts": "tree starter seed batch_size shard device",
    "pack": "tree seed shard",
    "report": "tree seed batch_size device markdown",
    "sample": "tree starter seed batch_size shard device",
    "select": "tree",
    "study": "tree starter seed batch_size device markdown",
    "train-autoencoder": "tree seed batch_size device",
    "train-embedder": "tree seed batch_size device",
    "train-fr": "tree seed batch_size device",
    "train-identity": "seed batch_size device",
    "train-ldm": "tree starter seed batch_size device",
}
_OPTIONAL = {"tree", "starter", "batch_size", "shard", "markdown"}
COMMON = "Common options"  # heading of the help
Config = Annotated[
    str | None,
    typer.Option(metavar="RECIPE", help="Recipe: a YAML file, or the name of a built-in one.", rich_help_panel=COMMON),
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=COMMON)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=COMMON)]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print the tables in Markdown.", rich_help_panel=COMMON)
]
LogFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write messages to this file.", rich_help_panel=COMMON)
]

_COMMON: dict[str, Any] = {
    "overrides": list[str] | None,  # the help names the stage
    "config": Config,
    "work": Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; default ./work.", rich_help_panel=COMMON)
    ],
    "tree": Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory in the layout of ADMIS, for inputs not given otherwise.",
                     rich_help_panel=COMMON),
    ],
    "starter": Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Starter with networks and contexts: a folder, or the word packaged.",
                     rich_help_panel=COMMON),
    ],
    "out": Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write here instead of the stage's folder in --work.", rich_help_panel=COMMON),
    ],
    "seed": Annotated[
        int | None, typer.Option(metavar="N", help="Seed of everything random.", rich_help_panel=COMMON)
    ],
    "batch_size": Annotated[
        str | None,
        typer.Option(metavar="N", help="Images per batch; for sample also auto.", rich_help_panel=COMMON),
    ],
    "shard": Annotated[
        str | None, typer.Option(metavar="I/N", help="Make part I of N, counted from 1.", rich_help_panel=COMMON)
    ],
    "device": Device,
    "dry_run": Annotated[
        bool,
        typer.Option("--dry-run", help="Show the resolved settings and the plan, and exit.", rich_help_panel=COMMON),
    ],
    "json": Json,
    "markdown": Markdown,
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
        annotations = _annotations(name)
        parameters += [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, annotation=annotations[key],
                default=False if key in ("dry_run", "json", "markdown") else None,
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


def _annotations(name: str) -> dict[str, Any]:
    """Return the annotation of every common option, as the help of one stage shows it."""
    text = f"A setting; `facesyn config --stage {name}` lists all."
    settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=text)]
    hidden = {key: annotation for key, annotation in _HIDDEN.items() if key not in OPTIONS[name].split()}
    return {**_COMMON, "overrides": settings, **hidden}


def _execute(name: str, flags: dict[str, Any], common: SimpleNamespace) -> None:
    """Resolve the config of one stage, then plan or run it and print the result."""
    start(common.log_file)
    check_forms(common.json or common.dry_run, common.markdown)
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.cli import next_step
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
    result = {**outcome.summary, "folder": str(outcome.folder)}
    print_result(result, common.json, lambda result: outcome.shown(), common.markdown)
    given = {**flags, **{key: getattr(common, key) for key in ("config", "work", "tree", "starter")}}
    next_step.show(next_step.after_stage(name, outcome.folder, work, given, OPTIONS), common.json)


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


def check_forms(is_other: bool, as_markdown: bool) -> None:
    """Refuse `--markdown` beside `--json` and `--dry-run`, which print no table.

    Raises:
        UserError: Both are given.
    """
    if is_other and as_markdown:
        raise UserError("--markdown prints the tables of a result; leave it out with --json or --dry-run")


def print_result(
    value: Any, as_json: bool, render: Callable[[Any], str | Sequence[Block]], as_markdown: bool = False
) -> None:
    """Print a result to stdout; only the first process does.

    Args:
        value: JSON values.
        as_json: Print them as JSON.
        render: Returns the text or the blocks for a person, drawn in the width of the terminal.
        as_markdown: Print the blocks in Markdown.
    """
    from facesyn_cli.artifacts import text_tables
    from facesyn_cli.cli import terminal

    if not console.is_first_process():
        return
    if as_json:
        print_json(value)
        return
    shown = render(value)
    if isinstance(shown, str):
        typer.echo(shown)
    elif as_markdown:
        typer.echo(text_tables.to_markdown(shown))
    else:
        typer.echo(terminal.draw(shown, terminal.terminal_width()), color=True)


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json_format.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
