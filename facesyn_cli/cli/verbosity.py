"""`--quiet` and `--verbose`: options of `facesyn` and of every command, so that they work on both sides of its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from facesyn_cli import console
from facesyn_cli.cli.stage_command import COMMON

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Show only warnings and errors, no progress.", rich_help_panel=COMMON),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also show files read, devices, settings, digests.", rich_help_panel=COMMON),
]


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the two options added; they are applied before it runs."""
    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", Quiet), ("verbose", Verbose))
    ]

    @functools.wraps(command)
    def run(*, quiet: bool, verbose: bool, **values: Any) -> None:
        console.set_verbosity(quiet, verbose)
        command(**values)

    parameters = [*signature.parameters.values(), *added]
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
