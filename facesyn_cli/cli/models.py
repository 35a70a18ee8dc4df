"""`facesyn models`: list, inspect, convert and verify weights; `main` adds push and pull."""

from itertools import starmap
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start

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
        list_(json)


@app.command("list", epilog="facesyn models list --json")
def list_(json: Json = False) -> None:
    """List known weights and the parts of the packaged starter."""
    start()
    from facesyn_cli.stages import models

    print_result(models.list_weights(), json, lambda weights: "\n\n".join(starmap(_entry, weights.items())))


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
    from facesyn_cli.stages.models_convert import convert as convert_weights

    result = convert_weights(file, out, to, parts, dataset, precision, channel_order)
    print_result(result, json, _render_converted)


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

    files = [f"{name}: {digest}" for name, digest in result.pop("files").items()]
    return "\n".join([render_summary(result), *files])


def _entry(name: str, entry: dict[str, Any]) -> str:
    details = [f"  {key}: {value}" for key, value in entry.items() if key not in ("kind", "architecture")]
    return "\n".join([f"{name}: {entry['kind']}, {entry['architecture']}", *details])
