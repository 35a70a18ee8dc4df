"""`facesyn align`: cut aligned face crops out of photos."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn align --images photos/ --detector yunet.onnx --work runs/a",
    "facesyn align --images celeba.zip --landmarks landmarks.txt --out faces/",
    "facesyn align --images photos/ --detector yunet.onnx pick=central size=160",
)


@stage_command("align")
def command(
    images: Annotated[Path | None, typer.Option(help="Folder, zip or packed set of photos.")] = None,
    detector: Annotated[Path | None, typer.Option(help="YuNet face detector, an .onnx file.")] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="Landmarks instead of a detector: CelebA's list, TFace's pts_list, or CSV.")
    ] = None,
) -> None:
    """Cut aligned faces out of photos.

    Faces are rotated and scaled to the ArcFace template, 112 x 112 pixels, and written to 0-images.
    """
