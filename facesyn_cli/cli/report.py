"""`facesyn report`: measure image sets and write an HTML page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command

EXAMPLES = (
    "facesyn report --work runs/a --judge edgeface_xxs.onnx",
    "facesyn report synthetic/ other.zip --reference faces/ --judge edgeface.onnx",
    "facesyn report --work runs/a --max-images 2000 --device cuda",
)


@stage_command("report")
def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SET|KEY=VALUE", help="Folders, zips or packed sets; settings."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Real training images, the reference of leakage and quality.")
    ] = None,
    judges: Annotated[
        list[Path] | None, typer.Option("--judge", help="Weights of a judge recognizer; repeatable.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV with a column `identity` or `key`, then one column per attribute.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Weights of Inception-v3, for distances in its features (FID and others).")
    ] = None,
    perceptual: Annotated[
        list[Path] | None, typer.Option(help="LPIPS: given twice, the network and its linear layers.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Benchmark table of `eval`; default: that of the run in --work.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Measure whole identities up to this number of images; default: all.")
    ] = None,
) -> dict[str, Any]:
    """Report quality, diversity and privacy of image sets.

    Without sets, the report is about the run in --work. Beside its page report.html, the folder gallery shows all
    images, to browse, filter and sort.
    """
    words = overrides or []
    sets = [word for word in words if "=" not in word or Path(word).exists()]
    return {"overrides": [word for word in words if word not in sets], "sets": [Path(word) for word in sets] or None}
