"""`facesyn models`: list, inspect, convert and verify weights; `main` adds push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from facesyn_cli.artifacts.text_tables import Block

EXAMPLES = (
    "facesyn models",
    "facesyn models inspect ema_averaged_model_200000.ckpt",
    "facesyn models convert runs/a/7-fr --to onnx --out deploy/",
)

app = typer.Typer(help="List, inspect, convert, verify, push or pull weights.")

_File = Annotated[Path, typer.Argument(metavar="PATH", help="File or folder of weights.", show_default=False)]
_ChannelOrder = Annotated[str | None, typer.Option(help="rgb or bgr, where a recognizer's file does not tell.")]


@app.callback(invoke_without_command=True)
def _bare(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_(json=json)


@app.command("list", epilog="facesyn models list --json")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show everything about one of them.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List known weights and the parts of the packaged starter."""
    start()
    from facesyn_cli.stages import models

    found = models.list_weights()
    if name is not None and name not in found:
        raise UserError(f"{name} is not in the list; names are {', '.join(found)}")
    if name is None:
        print_result(found, json, _blocks)
    else:
        _print({"name": name, **found[name]}, json)


@app.command(epilog="facesyn models inspect ema_averaged_model_200000.ckpt")
def inspect(file: _File, json: Json = False) -> None:
    """Show what a file contains: architecture, settings, format."""
    start()
    from facesyn_cli.stages import models

    _print(models.inspect(file), json)


@app.command(epilog="facesyn models convert runs/a/7-fr --to onnx --out deploy/\n"
                    "facesyn models convert backbone.pth --out converted/ --precision fp16")
def convert(
    file: _File,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    to: Annotated[str, typer.Option(help="safetensors, published or onnx.")] = "safetensors",
    parts: Annotated[int | None, typer.Option(help="Number of files of a published classifier; default 1.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set of a classifier.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or fp16 for safetensors of half the size.")] = None,
    channel_order: _ChannelOrder = None,
    json: Json = False,
) -> None:
    """Write weights in another format."""
    start()
    from facesyn_cli.cli import next_step
    from facesyn_cli.stages.models_convert import convert as convert_weights

    result = convert_weights(file, out, to, parts, dataset, precision, channel_order)
    print_result(result, json, _render_converted)
    next_step.show(next_step.after_conversion(result["kind"], result["format"], out), json)


@app.command(epilog="facesyn models verify backbone.pth --channel-order rgb")
def verify(
    file: _File,
    fixture: Annotated[Path | None, typer.Option(help=".npz of inputs and expected outputs.")] = None,
    channel_order: _ChannelOrder = None,
    json: Json = False,
) -> None:
    """Load weights strictly, run the network once, compare with a fixture."""
    start()
    from facesyn_cli.stages import models

    _print(models.verify(file, fixture, channel_order), json)


def _print(result: dict[str, Any], json: bool) -> None:
    from facesyn_cli.artifacts.outcome import render_summary

    print_result(result, json, render_summary)


def _render_converted(result: dict[str, Any]) -> str:
    from facesyn_cli.artifacts.outcome import render_summary

    files = [f"{name}: {digest}" for name, digest in result["files"].items()]
    return "\n".join([render_summary({key: value for key, value in result.items() if key != "files"}), *files])


def _blocks(weights: dict[str, dict[str, Any]]) -> list[Block]:
    from facesyn_cli.artifacts.text_tables import Column, Table

    columns = [Column("name", is_text=True), Column("kind", is_text=True), Column("use", is_text=True),
               Column("license", is_text=True, rank=1)]
    rows = [[name, *(entry[column.title] for column in columns[1:])] for name, entry in weights.items()]
    return [Table(columns, rows), "facesyn models list NAME shows architecture, source and address of one of them"]
