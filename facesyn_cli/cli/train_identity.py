"""`facesyn train-identity`: train a recognizer of latents for the identity loss."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-identity --work runs/a",
    "facesyn train-identity --images faces/ --embeddings emb/",
    "facesyn train-identity --work runs/a --steps 5000 latent_noise=0.3",
)


@stage_command("train-identity", {"backbone": "backbone.name"})
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Embeddings of the images; default 1-embeddings.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Autoencoder of the LDM; default 2-autoencoder, or else taesd3.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Network to train, one that reads latents; default latent-ir.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
) -> None:
    """Train a recognizer of latents for the identity loss."""
