"""`facesyn models`: published weights, what a file holds, and its way from one format to another."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import print_json, start

ACTIONS = {  # action -> options that belong to it
    "list": (),
    "inspect": (),
    "convert": ("out", "to", "parts", "dataset", "precision", "channel_order"),
    "verify": ("fixture", "channel_order"),
    "pull": ("out", "sha256"),
}


def command(
    action: Annotated[str, typer.Argument(help="list, inspect, convert, verify or pull.")] = "list",
    target: Annotated[str | None, typer.Argument(help="File or folder; for pull a name, hub id or address.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write (convert; pull, default ./weights).")] = None,
    to: Annotated[str | None, typer.Option(help="safetensors (default), published or onnx (convert).")] = None,
    parts: Annotated[int | None, typer.Option(help="Files of a published classifier (convert); default 1.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set of a classifier (convert).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or fp16 for safetensors of half the size (convert).")
    ] = None,
    fixture: Annotated[Path | None, typer.Option(help=".npz of inputs and right outputs (verify).")] = None,
    channel_order: Annotated[
        str | None, typer.Option(help="rgb or bgr, where a recognizer's file does not tell (convert, verify).")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum the file must have (pull).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List known weights, inspect FILE, convert FILE --out DIR, verify FILE, or pull NAME."""
    options = {"out": out, "to": to, "parts": parts, "dataset": dataset, "precision": precision, "fixture": fixture,
               "sha256": sha256, "channel_order": channel_order}
    given = {key: value for key, value in options.items() if value is not None}
    start()
    _check(action, target, given)
    from facesyn_cli.artifacts.outcome import render_summary
    from facesyn_cli.stages import models

    if action == "list":
        result: dict[str, Any] = models.list_weights()
    elif action == "pull":
        result = models.pull(target, **given)
    else:
        result = getattr(models, action)(Path(target), **given)
    if json:
        print_json(result)
    elif action == "list":
        typer.echo("\n\n".join(_entry(name, entry) for name, entry in result.items()))
    else:
        files = result.pop("files") if action == "convert" else {}
        typer.echo("\n".join([render_summary(result), *(f"{name}: {digest}" for name, digest in files.items())]))


def _check(action: str, target: str | None, given: dict[str, Any]) -> None:
    """Refuse an unknown action, a missing target and options of other actions."""
    import difflib

    from facesyn_cli.errors import UserError

    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"models: unknown action {action!r}{hint} Known: {', '.join(ACTIONS)}")
    for key in given:
        if key not in ACTIONS[action]:
            raise UserError(f"models {action} has no option --{key.replace('_', '-')}")
    if (target is None) != (action == "list"):
        what = "takes nothing else" if action == "list" else f"needs a {'name' if action == 'pull' else 'file'}"
        raise UserError(f"models {action} {what}")
    if action == "convert" and "out" not in given:
        raise UserError("models convert needs --out, the folder to write")


def _entry(name: str, entry: dict[str, Any]) -> str:
    details = [f"  {key}: {value}" for key, value in entry.items() if key not in ("kind", "architecture")]
    return "\n".join([f"{name}: {entry['kind']}, {entry['architecture']}", *details])
