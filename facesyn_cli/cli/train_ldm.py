"""`facesyn train-ldm`: train a latent diffusion model on faces and their embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-ldm --config small --work runs/a",
    "facesyn train-ldm --images faces/ --embeddings emb/ --autoencoder vae/",
    "accelerate launch -m facesyn_cli train-ldm --config admis --work runs/a",
)


@stage_command("train-ldm")
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Embeddings of the images; default 1-embeddings.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Weights of the autoencoder: file, folder, hub id or taesd3.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
) -> None:
    """Train a latent diffusion model on faces and embeddings."""
