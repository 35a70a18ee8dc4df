"""`facesyn augment`: add images to every identity of a set."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn augment --work runs/a --copies 5",
    "facesyn augment --in faces/ --out bright/ augmentation.name=photometric",
    "facesyn augment --work runs/a --dry-run",
)


@stage_command("augment", {"copies": "augmentation.copies"})
def command(
    images: Annotated[Path | None, typer.Option("--in", help="Images to add to; default: 4-samples of --work.")] = None,
    contexts: Annotated[
        Path | None, typer.Option(help="Contexts with the source faces; default: 3-contexts of --work.")
    ] = None,
    copies: Annotated[int | None, typer.Option(help="Images to add; see the card of the augmentation.")] = None,
) -> None:
    """Add images to every identity of a finished set.

    The images of the set are linked, never edited.
    """
