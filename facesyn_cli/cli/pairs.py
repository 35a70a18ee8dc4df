"""`facesyn pairs`: convert verification pairs."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start

EXAMPLES = (
    "facesyn pairs pairs.txt --images lfw/ --out lfw.bin",
    "facesyn pairs lfw.bin --out lfw/",
    "facesyn pairs cfp-dataset/ --cfp FF --resize --out cfp_ff.bin",
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A .bin, a pair list (LFW, CALFW, CPLFW, or path path 0/1), or the folder of CFP."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output: a .bin file, or a folder for images and a list.")],
    images: Annotated[Path | None, typer.Option(help="Folder or zip with the images of a pair list.")] = None,
    cfp: Annotated[str, typer.Option(help="Pairs of CFP: FP or FF.")] = "FP",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 112,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size.")] = False,
    json: Json = False,
) -> None:
    """Convert verification pairs: lists, folders, .bin files.

    Lists and the folder of CFP become a .bin in the format of InsightFace; a .bin becomes images and a list.
    """
    start()
    from facesyn_cli.artifacts.outcome import render_summary
    from facesyn_cli.cli import next_step
    from facesyn_cli.stages.pairs import convert_pairs

    print_result(convert_pairs(source, out, images, cfp, size, resize), json, render_summary)
    if out.suffix == ".bin":
        words = ["eval", "--weights", "RECOGNIZER", "--pairs", out]
        next_step.show(next_step.line(words, ["RECOGNIZER: weights of a face recognizer"]), json)
