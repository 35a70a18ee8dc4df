"""`facesyn starter`: show the networks and contexts that come with the package, or pack a run as a starter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.text_tables import Block

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
    without: Annotated[Path | None, typer.Option(help="List of identities to leave out, one a line.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="A part from another folder; repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """Pack a finished run as a starter."""
    start()
    from facesyn_cli.cli import next_step
    from facesyn_cli.stages import starter

    _print(starter.pack(work, out, card, count, dict(_named(word) for word in part or ()), without), json)
    next_step.show(next_step.line(["sample", "--starter", out, "--ids", "10", "--per-id", "10"]), json)


def _print(result: dict[str, Any], json: bool) -> None:
    print_result(result, json, _blocks)


def _blocks(result: dict[str, Any]) -> list[Block]:
    from facesyn_cli.artifacts.outcome import render_summary
    from facesyn_cli.artifacts.text_tables import Column, Table

    parts = Table([Column("part", is_text=True), Column("MB"), Column("digest", rank=1)],
                  [[name, f"{held['bytes'] / 1e6:.2f}", held["digest"]] for name, held in result["parts"].items()])
    settings = "\n".join(f"settings of {stage}: {_words(found)}" for stage, found in result["settings"].items())
    rest = {key: value for key, value in result.items() if key not in ("parts", "settings", "bytes")}
    total = f"size: {result['bytes'] / 1e6:.2f} MB"
    return [parts, *([settings] if settings else []), f"{total}\n{render_summary(rest)}"]


def _words(settings: dict[str, Any]) -> str:
    """Return settings as `key=value` words; of plugins in a list, their names."""
    words = []
    for key, value in settings.items():
        if isinstance(value, dict):
            words += [f"{key}.{name}={inner}" for name, inner in value.items() if inner is not None]
        else:
            items = value if isinstance(value, list) else [value]
            names = [str(item.get("name")) if isinstance(item, dict) else str(item) for item in items]
            words.append(f"{key}=[{','.join(names)}]" if isinstance(value, list) else f"{key}={names[0]}")
    return " ".join(words)


def _named(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise UserError(f"--part {word}: NAME=FOLDER is expected, for example embedder=runs/b/1-embedder")
    return name, Path(path)
