"""`facesyn embed`: compute embeddings of faces."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command


@stage_command("embed")
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Architecture; default: detected from the weights.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the recognizer.")] = None,
) -> dict[str, Any]:
    """Compute the embeddings of a folder of faces."""
    return {"images": images, "backbone.name": backbone, "weights": weights}
