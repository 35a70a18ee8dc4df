"""Assemble the commands; turn errors and signals into exit codes.

    0 done   1 a bug (traceback)   2 the user can fix it   130 / 143 / 138 stopped by a signal
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from facesyn_cli import __version__, console
from facesyn_cli.cli.verbosity import Quiet, Verbose, with_verbosity
from facesyn_cli.errors import Stopped, UserError

_PANELS = {  # heading of the help -> commands; command x-y is cli/x_y.py
    "Pipeline": (
        "demo", "run", "align", "embed", "train-ldm", "gen-contexts", "sample", "select", "augment", "pack", "train-fr",
        "eval",
    ),
    "Train parts": ("train-embedder", "train-autoencoder", "train-decoder"),
    "Judge": ("report", "compare", "pairs", "study", "ablate"),
    "Tools": ("models", "starter", "plugins", "config", "doctor", "bench"),
}
_NAMED_BY = {  # command that the list leaves out -> command whose help names it
    "train-decoder": "train-autoencoder", "pairs": "eval", "ablate": "study", "starter": "models", "bench": "doctor",
}


class _Panels(typer.core.TyperGroup):
    """Lists commands under the headings of `_PANELS`; Typer's own panels import rich, which takes 0.1 s."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for name in self.commands)
        limit = formatter.width - width - 4
        for panel, names in _PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(f"{name:{width}}", self.commands[name].get_short_help_str(limit))
                                    for name in names if name not in _NAMED_BY])


app = typer.Typer(
    name="facesyn",
    cls=_Panels,
    help="Face-recognition training sets of people who do not exist: generate, pack, train, evaluate.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MODULES = {name: import_module(f"facesyn_cli.cli.{name.replace('-', '_')}")
            for names in _PANELS.values() for name in names}


def _see_also(name: str) -> str | None:
    """Return the last line of a command's help: the command that it names."""
    for other, module in _MODULES.items():
        if _NAMED_BY.get(other) == name:
            about = module.app.info.help if hasattr(module, "app") else module.command.__doc__.splitlines()[0]
            return f"See also: facesyn {other}. {about}"
    return None


for _name, _module in _MODULES.items():
    if hasattr(_module, "app"):
        for _command in _module.app.registered_commands:
            _command.callback = with_verbosity(_command.callback)
        app.add_typer(_module.app, name=_name, epilog=_see_also(_name))
    else:
        app.command(_name, epilog=_see_also(_name))(with_verbosity(_module.command))

# Errors of the system that a user can fix; a stage that knows more reports it itself.
_SYSTEM_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"facesyn {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    console.set_verbosity(quiet, verbose)


def run_command_line(arguments: list[str]) -> int:
    """Run one command and return its exit code; messages go to stderr, from the first process only."""
    console.configure()
    try:
        code = app(args=arguments or ["--help"], prog_name="facesyn", standalone_mode=False)
        sys.stdout.flush()  # an error here is an error of this command
        return code if isinstance(code, int) else 0
    except UserError as error:
        _log_error(str(error))
        return error.exit_code
    except Stopped as stop:
        console.log.info(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        console.log.info("interrupted; run the same command again to resume")
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141  # the reader of our output is gone
    except OSError as error:
        if error.errno not in _SYSTEM_ERRORS:
            raise
        _drop_stdout()
        _log_error(f"{error.filename or 'a file or the standard output'}: {error.strerror}")
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)  # a usage error of the option parser
        _log_error(f"{error.format_message()} (see {context.command_path if context else 'facesyn'} --help)")
        return 2


def _log_error(text: str) -> None:
    if console.is_first_process():  # the others fail with the same error
        console.log.error(text)


def _drop_stdout() -> None:
    """Discard what is left in the buffer, so that the interpreter does not fail on it when it exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # stdout may be no file, or closed
            os.dup2(null.fileno(), sys.stdout.fileno())
