"""`facesyn starter`: the networks and contexts that come with the package."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import print_json, start
from facesyn_cli.errors import UserError

_OF_PACK = ("work", "out", "card", "count", "part")


def command(
    action: Annotated[str, typer.Argument(help="show or pack.")] = "show",
    folder: Annotated[Path | None, typer.Argument(help="Starter to show; default: the packaged one.")] = None,
    work: Annotated[Path | None, typer.Option(help="Finished run to pack.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write (pack).")] = None,
    card: Annotated[
        Path | None, typer.Option(help="YAML with data, split, license, figures and notes for the cards (pack).")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Contexts to take (pack); default all.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A part that lies elsewhere (pack); repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show the starter, what `sample` and others use where nothing is given; or pack one out of a run."""
    values = {"work": work, "out": out, "card": card, "count": count, "part": part}
    start()
    _check(action, folder, {name for name in _OF_PACK if values[name]})
    from facesyn_cli.artifacts.outcome import render_summary
    from facesyn_cli.stages import starter

    if action == "show":
        result: dict[str, Any] = starter.show(folder)
    else:
        result = starter.pack(work, out, card, count, dict(_named(word) for word in part or ()))
    if json:
        print_json(result)
        return
    parts = result.pop("parts")
    lines = [f"{name}: {held['bytes'] / 1e6:.2f} MB, {held['digest']}" for name, held in parts.items()]
    typer.echo("\n".join([*lines, render_summary(result)]))


def _check(action: str, folder: Path | None, given: set[str]) -> None:
    if action not in ("show", "pack"):
        raise UserError(f"starter: unknown action {action!r}; show or pack")
    if action == "show" and given:
        raise UserError(f"starter show has no option {', '.join(f'--{name}' for name in sorted(given))}")
    if action == "pack" and folder is not None:
        raise UserError("starter pack takes the run with --work DIR and writes to --out DIR")
    if action == "pack" and not {"work", "out"} <= given:
        raise UserError("starter pack needs --work DIR, a finished run, and --out DIR, the folder to write")


def _named(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise UserError(f"--part {word}: NAME=FOLDER is expected, for example embedder=runs/b/1-embedder")
    return name, Path(path)
