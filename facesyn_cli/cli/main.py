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

from facesyn_cli import __version__, console
from facesyn_cli.cli.help_page import CommandHelp, GroupHelp, parameters_of, summaries, write_sections
from facesyn_cli.cli.stage_command import DEFAULT_WORK
from facesyn_cli.cli.verbosity import Quiet, Verbose, with_verbosity
from facesyn_cli.errors import Stopped, UserError, did_you_mean

_PANELS = {  # heading of the help -> commands; command x-y is cli/x_y.py
    "Pipeline": (
        "demo", "init", "run", "align", "embed", "train-ldm", "gen-contexts", "sample", "select", "augment", "pack",
        "train-fr", "eval",
    ),
    "Train parts": ("train-embedder", "train-autoencoder", "train-identity"),
    "Judge": ("report", "compare", "pairs", "study", "ablate"),
    "Tools": ("guide", "models", "push", "pull", "starter", "plugins", "config", "doctor", "bench"),
}
_NEXT = (
    "Start with `facesyn demo`; it needs no data of your own and no GPU.",
    "Read on with `facesyn guide`: the first hour, methods, clusters, file formats.",
)
_FIRST_STEPS = """\
facesyn makes face-recognition training sets of people who do not exist.

  facesyn demo      Generate faces, train a recognizer, write a report: two
                    minutes, without data of your own and without a GPU.
  facesyn init      Write a recipe for your own photos, for `facesyn run`.
  facesyn --help    List all commands.
  facesyn guide     Read on: the first hour, methods, clusters, file formats."""


class _Panels(GroupHelp):
    """Lists the commands under the headings of `_PANELS`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_sections(formatter, {panel: summaries(self, names) for panel, names in _PANELS.items()})
        write_sections(formatter, {"Options": [row for rows in parameters_of(self, ctx).values() for row in rows]})

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n" + "".join(f"{line}\n" for line in _NEXT))


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

for _name in ("push", "pull"):  # the same commands under `facesyn models`
    _example = _MODULES[_name].EXAMPLES[0].replace("facesyn", "facesyn models", 1)
    _MODULES["models"].app.command(_name, epilog=_example)(_MODULES[_name].command)
for _name, _module in _MODULES.items():
    _examples = "\n".join(_module.EXAMPLES)
    if hasattr(_module, "app"):
        for _command in _module.app.registered_commands:
            _command.cls = CommandHelp
            _command.callback = with_verbosity(_command.callback)
        app.add_typer(_module.app, name=_name, cls=GroupHelp, epilog=_examples)
    else:
        app.command(_name, cls=CommandHelp, epilog=_examples)(with_verbosity(_module.command))

# Errors of the system that a user can fix; a stage that knows more reports it itself.
_SYSTEM_ERRORS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"facesyn {__version__}")
        raise typer.Exit()


def _print_script(is_given: bool) -> None:
    if is_given:
        from facesyn_cli.cli import completion

        typer.echo(completion.script(completion.current_shell()), nl=False)
        raise typer.Exit()


def _install_completion(is_given: bool) -> None:
    if is_given:
        from facesyn_cli.cli import completion

        shell = completion.current_shell()
        path, start = completion.install(shell)
        where = f"{path}, loaded by {start}" if start else path
        typer.echo(f"Completion for {shell}: {where}. It works in the next shell that you open.")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option("--install-completion", is_eager=True, callback=_install_completion,
                     help="Install completion with the Tab key for the current shell (bash, zsh or fish)."),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option("--show-completion", is_eager=True, callback=_print_script,
                     help="Print the completion script of the current shell."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    console.set_verbosity(quiet, verbose)


def run_command_line(arguments: list[str]) -> int:
    """Run one command and return its exit code; messages go to stderr, from the first process only."""
    console.configure()
    try:
        if "_FACESYN_COMPLETE" in os.environ:
            from facesyn_cli.cli import completion

            typer.echo(completion.answer(typer.main.get_command(app)))
            return 0
        if not arguments:
            _print_first_steps()
            return 0
        code = app(args=arguments, prog_name="facesyn", standalone_mode=False)
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
        _log_usage_error(error, arguments[0])
        return 2


def _log_usage_error(error: Any, first: str) -> None:
    """Print the usage line of the command and what the option parser did not accept; `first` is the first word."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    name = f"facesyn {first}" if first in _MODULES else "facesyn"
    if context is not None:  # a missing value comes without
        name = context.command_path
        console.log.info(context.get_usage())
        if hasattr(error, "possibilities"):  # an unknown option
            message = f"No such option: {error.option_name}{_instead_of(error.option_name, context)}"
    _log_error(f"{message} ({name} --help)")


def _instead_of(option: str, context: Any) -> str:
    """Return what may have been meant by an option that a command does not have: a setting, or another option."""
    from facesyn_cli.config.setting_table import setting_table

    name = option.lstrip("-").replace("-", "_")
    keys = setting_table()["stages"].get(context.info_name, {})
    near = [key for key in keys if key == name or key.endswith(f".{name}")]
    if near:
        return f"; it is a setting: {near[0]}=VALUE"
    shown = [parameter for parameter in context.command.get_params(context) if not getattr(parameter, "hidden", False)]
    return did_you_mean(option, [name for parameter in shown for name in parameter.opts if name.startswith("--")])


def _print_first_steps() -> None:
    """Print what to type first, and the stages of a run in ./work that are not finished."""
    from facesyn_cli.artifacts.header import BEGUN, HEADER

    typer.echo(_FIRST_STEPS)
    begun = [path.parent for path in sorted(DEFAULT_WORK.glob(f"*/{BEGUN}")) if not (path.parent / HEADER).exists()]
    if begun:
        typer.echo(f"\nNot finished: {', '.join(map(str, begun))}. The command that began it resumes it.")


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
