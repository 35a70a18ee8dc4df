"""`facesyn pairs`: verification pairs from one form to another."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import print_json, start


def command(
    source: Annotated[
        Path, typer.Argument(help="A .bin, a pair list (LFW, CALFW, CPLFW, or path path 0/1), or the folder of CFP.")
    ],
    out: Annotated[Path, typer.Option(help="What to write: a name ending in .bin, or a folder for images and a list.")],
    images: Annotated[Path | None, typer.Option(help="Folder or zip with the images that a list names.")] = None,
    cfp: Annotated[str, typer.Option(help="Which pairs of CFP: FP or FF.")] = "FP",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 112,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Turn verification pairs into a .bin as InsightFace packs them, or a .bin into images and a list."""
    start()
    from facesyn_cli.stages.pairs import convert_pairs

    result = convert_pairs(source, out, images, cfp, size, resize)
    if json:
        print_json(result)
        return
    typer.echo("\n".join(f"{key}: {value}" for key, value in result.items()))
