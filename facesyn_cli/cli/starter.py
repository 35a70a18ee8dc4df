"""`facesyn starter`: show the networks and contexts that come with the package, or pack a run as a starter."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.errors import UserError

EXAMPLES = (
    "facesyn starter",
    "facesyn starter show my-starter/",
    "facesyn starter pack --work runs/a --out my-starter/",
)

app = typer.Typer(help="Show the packaged networks, or pack a run as a starter.")


@app.callback(invoke_without_command=True)
def _bare(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        show(json=json)


@app.command(epilog="facesyn starter show my-starter/")
def show(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Starter to show; default: the packaged one.")
    ] = None,
    json: Json = False,
) -> None:
    """Show parts, sizes and digests of a starter, each file checked."""
    start()
    from facesyn_cli.stages import starter

    _print(starter.show(folder), json)


@app.command(epilog="facesyn starter pack --work runs/a --out my-starter/ --card card.yaml")
def pack(
    work: Annotated[Path, typer.Option(help="Folder of the finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    card: Annotated[
        Path | None, typer.Option(help="YAML with data, split, license, figures and notes for the cards.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of contexts; default all.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A part from another folder; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Pack a finished run as a starter."""
    start()
    from facesyn_cli.stages import starter

    _print(starter.pack(work, out, card, count, dict(_named(word) for word in part or ())), json)


def _print(result: dict[str, Any], json: bool) -> None:
    from facesyn_cli.artifacts.outcome import render_summary

    parts = {name: f"{held['bytes'] / 1e6:.2f} MB, {held['digest']}" for name, held in result["parts"].items()}
    rest = {key: value for key, value in result.items() if key != "parts"}
    print_result(result, json, lambda result: render_summary(parts | rest))


def _named(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise UserError(f"--part {word}: NAME=FOLDER is expected, for example embedder=runs/b/1-embedder")
    return name, Path(path)
