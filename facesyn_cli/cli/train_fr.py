"""`facesyn train-fr`: train a recognizer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-fr --work runs/a --backbone ir-50 --head adaface --epochs 40",
    "facesyn train-fr --in real/ --in synthetic/ --out fr/ head.scale=32",
    "accelerate launch -m facesyn_cli train-fr --config admis --work runs/a",
)


@stage_command("train-fr", {"backbone": "backbone.name", "head": "head.name"})
def command(
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--in", metavar="PATH[=WEIGHT]",
            help="Records or a folder of faces, with a factor of its loss; repeatable; default 6-records.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Network, for example ir-50; `facesyn plugins backbone` lists all.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Margin head, for example arcface; `facesyn plugins head` lists all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
) -> dict[str, Any]:
    """Train a face recognizer on records or folders.

    Identities of different inputs stay distinct.
    """
    paths, weights = _split(inputs or [])
    return {"inputs": paths or None, "input_weights": weights if any(weight != 1 for weight in weights) else None}


def _split(inputs: list[str]) -> tuple[list[Path], list[float]]:
    """Split `PATH=WEIGHT`; a path that exists, or does not end in a number, has weight 1."""
    paths, weights = [], []
    for text in inputs:
        path, equals, number = text.rpartition("=")
        try:
            weight = float(number) if equals and path and not Path(text).exists() else None
        except ValueError:
            weight = None
        paths.append(Path(text if weight is None else path))
        weights.append(1.0 if weight is None else weight)
    return paths, weights
