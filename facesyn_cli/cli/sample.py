"""`facesyn sample`: contexts to images of new identities."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command


@stage_command("sample")
def command(
    ldm: Annotated[Path | None, typer.Option(help="LDM folder or published checkpoint; default 2-ldm.")] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Autoencoder weights (decoder); default: the LDM's own.")
    ] = None,
    contexts: Annotated[
        Path | None, typer.Option(help="Contexts: folder or published .npy; default 3-contexts.")
    ] = None,
    ids: Annotated[int | None, typer.Option(help="How many identities; default all.")] = None,
    per_id: Annotated[int | None, typer.Option(help="Images of each identity.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Scheduler; see `facesyn plugins scheduler`.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Make part I of N, I from 1.")] = None,
    contact_sheet: Annotated[
        bool | None,
        typer.Option(help="Write OUT.contact_sheet.png, ten faces of ten people; default: of up to 400 images."),
    ] = None,
    assume_embedder: Annotated[
        str | None, typer.Option(help="Recognizer behind published files that do not say.")
    ] = None,
) -> dict[str, Any]:
    """Sample images of new identities from contexts."""
    return {
        "ldm": ldm,
        "autoencoder": autoencoder,
        "contexts": contexts,
        "ids": ids,
        "per_id": per_id,
        "scheduler.name": scheduler,  # before its settings: another name starts from that plugin's defaults
        "scheduler.steps": steps,
        "precision": precision,
        "shard": shard,
        "contact_sheet": contact_sheet,
        "assume_embedder": assume_embedder,
    }
