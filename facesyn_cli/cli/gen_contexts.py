"""`facesyn gen-contexts`: collect embeddings of new identities."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn gen-contexts --count 100",
    "facesyn gen-contexts --source two-stage --count 10000 --work runs/a",
    "facesyn gen-contexts --source images --images faces/ --weights r50.onnx",
)


@stage_command("gen-contexts", {"source": "source.name", "backbone": "backbone.name"})
def command(
    source: Annotated[
        str | None,
        typer.Option(
            help="two-stage (default), diffusers, guided-diffusion, images, embeddings, pca, sphere, or a plugin."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of contexts; default: all of the source.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder, zip or packed set of faces (images, embeddings).")
    ] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Embeddings, own or published (embeddings).")] = None,
    generator: Annotated[
        str | None, typer.Option(help="Folder or hub id (diffusers), or DCFace's ffhq_10m.pt (guided-diffusion).")
    ] = None,
    ldm: Annotated[Path | None, typer.Option(help="LDM; default 2-ldm (two-stage, quality).")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Its autoencoder; default: the one it was trained with.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Architecture; default: detected from the weights.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the recognizer; default: the one of 1-embeddings.")
    ] = None,
) -> None:
    """Collect embeddings of new identities to generate."""
