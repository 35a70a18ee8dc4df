"""`facesyn sample`: generate images from contexts."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn sample --ids 100 --per-id 10",
    "facesyn sample --work runs/a --ids 10000 --per-id 50 --precision bf16",
    "facesyn sample --work runs/a --shard 1/8 guidance.name=cfg guidance.scale=1.5",
)


@stage_command("sample", {"scheduler": "scheduler.name", "steps": "scheduler.steps"})
def command(
    ldm: Annotated[Path | None, typer.Option(help="LDM folder or published checkpoint; default 2-ldm.")] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Autoencoder weights (decoder); default: the LDM's own.")
    ] = None,
    contexts: Annotated[
        Path | None, typer.Option(help="Contexts: folder or published .npy; default 3-contexts.")
    ] = None,
    ids: Annotated[int | None, typer.Option(help="Number of identities; default all.")] = None,
    per_id: Annotated[int | None, typer.Option(help="Images per identity.")] = None,
    # before steps: another name resets the other settings of the plugin
    scheduler: Annotated[
        str | None, typer.Option(help="Diffusion sampler; `facesyn plugins scheduler` lists all.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or auto.")] = None,
    contact_sheet: Annotated[
        bool | None,
        typer.Option(help="Write OUT.contact_sheet.png, 10 x 10 faces; default: for up to 400 images."),
    ] = None,
    assume_embedder: Annotated[
        str | None, typer.Option(help="Recognizer of published files that do not name it.")
    ] = None,
) -> None:
    """Sample images of new identities from contexts."""
