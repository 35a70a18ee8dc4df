"""`facesyn pack`: convert images between folders and record formats."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn pack --work runs/a --to tfrecord",
    "facesyn pack --in faces/ --in more-faces.zip --to rec --out records/",
    "facesyn pack --in records/ --to folder --out images/",
)


@stage_command("pack", {"target_format": "format.name"})
def command(
    inputs: Annotated[
        list[Path] | None, typer.Option("--in", help="Folder or zip of images, or a packed set; repeatable.")
    ] = None,
    source_format: Annotated[
        str | None, typer.Option("--from", help="Format of the inputs; default: detected from the content.")
    ] = None,
    target_format: Annotated[
        str | None, typer.Option("--to", help="Format to write, for example tfrecord or folder.")
    ] = None,
) -> None:
    """Pack images into a few large files, or unpack them."""
