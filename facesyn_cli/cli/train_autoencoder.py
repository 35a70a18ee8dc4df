"""`facesyn train-autoencoder`: train an autoencoder on faces."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-autoencoder --images faces/ --steps 20000 --work runs/a",
    "facesyn train-autoencoder --features w600k_mbf.onnx autoencoder.name=face-vq",
    "facesyn train-autoencoder --device cuda --batch-size 256 precision=bf16",
)


@stage_command("train-autoencoder")
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    features: Annotated[Path | None, typer.Option(help="Recognizer that compares reconstructions in the loss.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
) -> None:
    """Train an autoencoder on faces."""
