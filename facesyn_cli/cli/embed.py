"""`facesyn embed`: compute embeddings of faces."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn embed --images faces/ --weights w600k_r50.onnx --work runs/a",
    "facesyn embed --weights backbone.pth --backbone iresnet-100 precision=bf16",
    "facesyn embed --images faces.zip --weights r50.onnx --out emb/ --shard 1/4",
)


@stage_command("embed", {"backbone": "backbone.name"})
def command(
    images: Annotated[Path | None, typer.Option(help="Folder or zip of faces; default 0-images.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Architecture; default: detected from the weights.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the recognizer.")] = None,
) -> None:
    """Compute the embeddings of a folder of faces."""
