"""`facesyn study`: compare schedulers, steps and identity methods."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn study --starter packaged --judge edgeface.onnx --ids 20 --per-id 4",
    "facesyn study --judge edgeface.onnx --schedulers ddim,unipc --steps 8,20,50",
    "facesyn study --config methods --judge edgeface.onnx --seeds 3",
)


@stage_command("study")
def command(
    judge: Annotated[Path | None, typer.Option(help="Judge recognizer; not the one of the contexts.")] = None,
    ldm: Annotated[Path | None, typer.Option(help="LDM folder or published checkpoint; default 2-ldm.")] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="Autoencoder weights; default: the LDM's own.")] = None,
    contexts: Annotated[
        Path | None, typer.Option(help="Contexts: folder or published .npy; default 3-contexts.")
    ] = None,
    ids: Annotated[int | None, typer.Option(help="Identities.")] = None,
    per_id: Annotated[int | None, typer.Option(help="Images per identity.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    schedulers: Annotated[str | None, typer.Option(help="Schedulers of the grid, comma-separated.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps of the grid, comma-separated.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Plugins of guidance or context_variation, comma-separated.")
    ] = None,
) -> None:
    """Compare schedulers, steps and identity methods."""
