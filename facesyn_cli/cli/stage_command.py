"""What all eight stage commands share: the common flags, and the way from flags to a finished stage.

A command file holds one function, `flags`, decorated with `stage_command`. Its parameters are the
everyday flags of the command; it returns them as config keys. Every other setting is given as `key=value`.
"""

from __future__ import annotations

import importlib
import inspect
import json as json_format
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli import console, signals
from facesyn_cli.cli import launch
from facesyn_cli.errors import UserError

if typing.TYPE_CHECKING:
    from facesyn_cli.artifacts.outcome import Outcome
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.fields import (
    StageConfig,
)

DEFAULT_WORK = Path("work")

_COMMON: dict[str, tuple[Any, Any]] = {
    "overrides": (
        Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any key of the recipe section.")],
        None,
    ),
    "config": (Annotated[str | None, typer.Option(help="Recipe: a YAML file or the name of a built-in one.")], None),
    "work": (Annotated[Path | None, typer.Option(help="Folder of the run; default ./work.")], None),
    "tree": (
        Annotated[Path | None, typer.Option(help="Directory laid out as ADMIS describes; what is there is taken.")],
        None,
    ),
    "starter": (
        Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Starter whose networks and contexts are taken, or the word packaged."),
        ],
        None,
    ),
    "out": (Annotated[Path | None, typer.Option(help="Write here instead of the stage's folder in --work.")], None),
    "seed": (Annotated[int | None, typer.Option(help="Seed of everything random.")], None),
    "batch_size": (
        Annotated[str | None, typer.Option(metavar="N", help="Images a batch; sample also takes auto.")], None
    ),
    "device": (Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")], None),
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Show the resolved config and the plan; do nothing.")],
                False),
    "json": (Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")], False),
    "log_file": (Annotated[Path | None, typer.Option(help="Also write messages to this file.")], None),
}


@dataclass(frozen=True)
class Common:
    """The flags every stage command has, by their names on the command line."""

    overrides: list[str] | None
    config: str | None
    work: Path | None
    tree: Path | None
    starter: Path | None
    out: Path | None
    seed: int | None
    batch_size: str | None
    device: str | None
    dry_run: bool
    json: bool
    log_file: Path | None


def stage_command(name: str) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., None]]:
    """Turn a function that maps flags to config keys into a complete command.

    Args:
        name: Name of the command, of its stage and of its recipe section.
    """

    def decorate(flags: Callable[..., dict[str, Any]]) -> Callable[..., None]:
        own = typing.get_type_hints(flags, include_extras=True)
        own.pop("return", None)
        parameters = [
            p.replace(annotation=own[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(flags).parameters.values()
        ]
        parameters += [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in _COMMON.items()
        ]

        def command(**values: Any) -> None:
            common = Common(**{key: values.pop(key) for key in _COMMON})
            execute(name, flags(**values), common)

        command.__doc__ = flags.__doc__
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def execute(name: str, flags: dict[str, Any], common: Common) -> None:
    """Resolve the config of one stage, then plan or run it and print the result."""
    from facesyn_cli.artifacts.work import Work

    start(common.log_file)
    section = section_of(common.config, name)
    flags = {**flags, "out": common.out, "seed": common.seed, "device": common.device, "batch_size": common.batch_size}
    work = Work(common.work or DEFAULT_WORK)
    section = {**_from_starter(name, common, section, flags, work), **section}
    cfg = resolve_stage(name, section, common.overrides or [], flags)
    if common.tree is not None:
        cfg = _with_tree(name, cfg, common.tree, section, common.overrides or [], flags, work)
    if common.dry_run:
        print_plan(cfg, plan_stage(name, cfg, work), common.json)
        return
    outcome = run_stage(name, cfg, work)
    if console.is_first_process():
        print_outcome(outcome, common.json)


def start(log_file: Path | None = None) -> None:
    """Set up messages and stop signals; the first thing every working command does."""
    console.configure(log_file)
    signals.install()
    launch.watch_launcher()


def section_of(recipe: str | None, name: str) -> dict[str, Any]:
    """Return the section of one stage in a recipe, empty without a recipe."""
    from facesyn_cli.config.recipe import load_recipe

    return load_recipe(recipe).get(name, {}) if recipe else {}


def resolve_stage(name: str, section: dict[str, Any], overrides: list[str], flags: dict[str, Any]) -> StageConfig:
    """Return the validated config of a stage."""
    from facesyn_cli.config.resolve import resolve

    config_class = config_class_of(name)
    if flags.get("batch_size") is not None and "batch_size" not in config_class.model_fields:
        raise UserError(f"{name} has no batch size")
    return resolve(config_class, name, section, overrides, flags)


def _with_tree(
    name: str, cfg: StageConfig, tree: Path, section: dict[str, Any], overrides: list[str], flags: dict[str, Any],
    work: Work,
) -> StageConfig:
    """Resolve the config of one stage again, with what the published tree holds for it."""
    from facesyn_cli.artifacts.published_tree import PublishedTree
    from facesyn_cli.cli.tree_inputs import keep_benchmarks, say, stated_keys, tree_inputs

    stated = stated_keys(section, overrides, flags)
    opened = PublishedTree.open(tree)
    found = tree_inputs(opened, name, cfg, stated, work)
    if name == "eval" and "benchmarks" not in stated_keys({}, overrides, flags):
        keep_benchmarks(opened, found, cfg)
    say({name: found})
    return resolve_stage(name, {**section, **found.settings}, overrides, flags)


def _from_starter(
    name: str, common: Common, section: dict[str, Any], flags: dict[str, Any], work: Work
) -> dict[str, Any]:
    """Return what a starter holds for one stage, where it needs that."""
    is_bare = common.work is None and common.config is None and common.tree is None
    if common.starter is None and not is_bare:
        return {}
    from facesyn_cli.cli.starter_inputs import Words, starter_settings

    if common.tree is not None:
        raise UserError("--starter and --tree both say where networks come from; give one of them")
    return starter_settings(name, Words(section, common.overrides or [], flags), work, common.starter)


def run_stage(name: str, cfg: StageConfig, work: Work) -> Outcome:
    """Run one stage; memory that ran out becomes one line."""
    with _memory(name):
        return stage_module(name).run(cfg, work)


def plan_stage(name: str, cfg: StageConfig, work: Work) -> dict[str, Any]:
    """Return the plan of one stage; memory that ran out becomes one line."""
    with _memory(name):
        plan = stage_module(name).plan(cfg, work)
    return plan if isinstance(plan, dict) else plan.to_json()


_OUT_OF_MEMORY = (  # torch says so in words only: too much for a CPU, for 64 bits, for an integer of 64 bits
    "can't allocate memory", "Storage size calculation overflowed", "Overflow when unpacking",
)


@contextmanager
def _memory(name: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{name}: not enough memory on the device; use a smaller --batch-size") from error
    except (MemoryError, RuntimeError, TypeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise UserError(f"{name}: not enough memory; use a smaller --batch-size, network or image size") from error


def stage_module(name: str) -> Any:
    """Import and return the module of a stage."""
    return importlib.import_module(f"facesyn_cli.stages.{name.replace('-', '_')}")


def config_class_of(name: str) -> type[StageConfig]:
    """Return the config class on top of a stage's module: `train-ldm` -> `TrainLdmConfig`."""
    return getattr(stage_module(name), "".join(part.title() for part in name.split("-")) + "Config")


def print_plan(cfg: StageConfig, plan: dict[str, Any], as_json: bool) -> None:
    """Print the resolved config and the plan to stdout."""
    import yaml

    from facesyn_cli.artifacts.outcome import render_summary

    if not console.is_first_process():
        return
    settings = cfg.to_json()
    flat = merge_groups(settings)
    if as_json:
        print_json({"config": settings, "plan": plan if isinstance(plan, dict) else plan.to_json()})
    else:
        sys.stdout.write(yaml.safe_dump({"config": flat}, sort_keys=True, allow_unicode=True))
        sys.stdout.write(f"\nplan\n{_indent(render_summary(plan if isinstance(plan, dict) else plan.to_json()))}\n")


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


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print the result of a stage to stdout."""
    if as_json:
        print_json({**outcome.summary, "folder": str(outcome.folder)})
    else:
        sys.stdout.write(f"{outcome.render()}\nfolder: {outcome.folder}\n")


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json_format.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
