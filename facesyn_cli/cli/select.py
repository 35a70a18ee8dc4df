"""`facesyn select`: drop or merge identities that look like one person."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn select --work runs/a --embeddings embeddings/",
    "facesyn select --in faces/ --embeddings emb/ --collisions merge --out kept/",
    "facesyn select --work runs/a --embeddings emb/ --largest-cluster min_images=10",
)


@stage_command("select")
def command(
    images: Annotated[Path | None, typer.Option("--in", help="Images; default: 4-samples of --work.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of the images by a judge, from facesyn embed.")
    ] = None,
    r: Annotated[
        float | None, typer.Option("--r", help="Cosine of two centers from which they count as one person.")
    ] = None,
    collisions: Annotated[str | None, typer.Option(help="drop or merge identities that count as one person.")] = None,
    largest_cluster: Annotated[
        bool | None, typer.Option("--largest-cluster", help="First leave out images unlike most of their identity.")
    ] = None,
) -> None:
    """Drop or merge identities that look like one person.

    Images that stay are linked, not copied.
    """
