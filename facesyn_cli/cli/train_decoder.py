"""`facesyn train-decoder`: fine-tune a decoder on samples of an LDM."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn train-decoder --work runs/a --features w600k_mbf.onnx",
    "facesyn train-decoder --initial vae/ --ldm ldm/ --embeddings emb/",
    "facesyn train-decoder --work runs/a --steps 5000 interpolation=0.5",
)


@stage_command("train-decoder")
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    initial: Annotated[Path | None, typer.Option(help="Autoencoder to fine-tune; default 2-autoencoder.")] = None,
    ldm: Annotated[Path | None, typer.Option(help="LDM to sample latents from; default 2-ldm.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Contexts of the samples; default 1-embeddings.")] = None,
    features: Annotated[Path | None, typer.Option(help="Recognizer that compares faces in the loss.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
) -> None:
    """Fine-tune a decoder on latents that an LDM samples."""
