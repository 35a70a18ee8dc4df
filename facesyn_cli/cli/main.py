"""Assemble the commands, and turn what happens into an exit code.

    0 done   1 our bug (traceback)   2 the user can fix it   130 / 143 / 138 stopped by a signal
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from facesyn_cli import __version__, console
from facesyn_cli.cli import (
    ablate,
    align,
    augment,
    bench,
    compare,
    config,
    demo,
    doctor,
    embed,
    eval,
    gen_contexts,
    models,
    pack,
    pairs,
    plugins,
    report,
    run,
    sample,
    select,
    starter,
    study,
    train_autoencoder,
    train_decoder,
    train_embedder,
    train_fr,
    train_ldm,
)
from facesyn_cli.errors import Stopped, UserError

app = typer.Typer(
    name="facesyn",
    help="Face-recognition training sets of people who do not exist: generate, pack, train, evaluate.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name, _module in (
    ("demo", demo),
    ("run", run),
    ("align", align),
    ("embed", embed),
    ("train-embedder", train_embedder),
    ("train-autoencoder", train_autoencoder),
    ("train-ldm", train_ldm),
    ("train-decoder", train_decoder),
    ("gen-contexts", gen_contexts),
    ("sample", sample),
    ("select", select),
    ("augment", augment),
    ("pack", pack),
    ("train-fr", train_fr),
    ("eval", eval),
    ("pairs", pairs),
    ("compare", compare),
    ("report", report),
    ("study", study),
    ("ablate", ablate),
    ("models", models),
    ("starter", starter),
    ("plugins", plugins),
    ("config", config),
    ("doctor", doctor),
    ("bench", bench),
):
    app.command(_name)(_module.command)


# What file systems and their keepers refuse; a stage that knows more says more, of the rest this says enough.
_OF_THE_MACHINE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"facesyn {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def run_command_line(arguments: list[str]) -> int:
    """Run one command and return its exit code; messages go to stderr, from the first process only."""
    try:
        code = app(args=arguments or ["--help"], standalone_mode=False)
        sys.stdout.flush()  # what cannot be printed is an error of this command
        return code if isinstance(code, int) else 0
    except (UserError, Stopped) as error:
        _say(f"error: {error}" if isinstance(error, UserError) else str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 141  # the reader of our output is gone; nothing is left to say
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        _drop_stdout()
        _say(f"error: {error.filename or 'a file or the standard output'}: {error.strerror}")
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _say(f"error: {error.format_message()} (see facesyn --help)")  # a usage error of the option parser
        return 2


def _drop_stdout() -> None:
    """Print what may be left in the buffer nowhere, so that the interpreter does not fail on it at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        except (OSError, ValueError):
            pass  # not a file of the system


def _say(text: str) -> None:
    if not console.is_first_process():
        return
    if console.log.handlers:
        console.log.error(text.removeprefix("error: ")) if text.startswith("error: ") else console.log.info(text)
    else:
        print(text, file=sys.stderr)
