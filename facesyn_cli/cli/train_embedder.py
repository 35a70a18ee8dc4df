"""`facesyn train-embedder`: train a small recognizer on embeddings of a larger one."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-embedder --work runs/a",
    "facesyn train-embedder --images faces/ --embeddings emb/ --backbone mbf",
    "facesyn train-embedder --work runs/a --steps 50000 optimizer.lr=0.0005",
)


@stage_command("train-embedder", {"backbone": "backbone.name"})
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of the images by the teacher; default 1-embeddings.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Network to train; `facesyn plugins backbone` lists all.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
) -> None:
    """Train a small recognizer on embeddings of a larger one."""
