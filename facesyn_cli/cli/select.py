"""`facesyn select`: drop or merge identities that are one person."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command


@stage_command("select")
def command(
    images: Annotated[Path | None, typer.Option("--in", help="Images; default: 4-samples of --work.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of those images by a judge, made with facesyn embed.")
    ] = None,
    r: Annotated[
        float | None, typer.Option("--r", help="Cosine of two centers from which they are the same person.")
    ] = None,
    collisions: Annotated[
        str | None, typer.Option(help="drop or merge: what becomes of an identity that is another one again.")
    ] = None,
) -> dict[str, Any]:
    """Drop or merge identities that a judge takes for the same person; images are linked."""
    return {"images": images, "embeddings": embeddings, "r": r, "collisions": collisions}
