"""`facesyn eval`: evaluate a recognizer on verification benchmarks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import split_names, stage_command
from facesyn_cli.plugins.builtin import BUILTIN

EXAMPLES = (
    "facesyn eval --work runs/a --benchmarks lfw,cfp-fp,agedb-30 --data bins/",
    "facesyn eval --weights w600k_mbf.onnx --pairs pairs.txt --images lfw/",
    "facesyn eval --benchmarks folder --images people/ --against old-table/",
    "facesyn eval --weights r50.pth --backbone ir-50 --benchmarks lfw --data bins/",
)


@stage_command("eval", {"backbone": "backbone.name"})
def command(
    weights: Annotated[Path | None, typer.Option(help="Weights of the recognizer; default 7-fr.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Architecture; default: detected from the weights.")] = None,
    benchmarks: Annotated[str | None, typer.Option(help=f"Comma-separated: {', '.join(BUILTIN['benchmark'])}.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmarks' files.")] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="A pair list (LFW, CALFW, CPLFW, or path path 0/1) or a .bin; repeatable."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or zip with the images of pair lists, or of the benchmark folder.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Earlier eval of another recognizer, for differences in the benchmark folder.")
    ] = None,
) -> dict[str, Any]:
    """Evaluate a recognizer on verification benchmarks.

    Computes accuracy as published, TAR at FAR, and AUC; with the benchmark folder, over all pairs of a folder of
    people, with 95 % intervals.
    """
    return {"benchmarks": split_names(benchmarks)}
