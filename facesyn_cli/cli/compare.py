"""`facesyn compare`: similarity of two photos or folders, and whether they show the same person."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start
from facesyn_cli.console import is_first_process, log

EXAMPLES = (
    "facesyn compare anna-1.jpg anna-2.jpg",
    "facesyn compare anna/ berta/ --weights w600k_mbf.onnx --resize",
    "facesyn compare a.jpg b.jpg --weights runs/a/7-fr --table runs/a/8-table",
)


def command(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="Photo, or folder or zip of one person: aligned crops, 112 x 112.")
    ],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="The other one.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the recognizer; default: the packaged starter's.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Folder or table.json of eval: calibrates the threshold.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Row of the table; default: mean of all.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize photos of another size.")] = False,
    flip: Annotated[bool, typer.Option(help="Average the embeddings of image and mirror image.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Compare two photos or folders: same person or not."""
    start()
    if not is_first_process():
        return
    from facesyn_cli.stages.compare import compare

    result = compare(first, second, weights or _of_starter(), table, benchmark, resize, flip, device)
    print_result(result, json, _render)


def _render(result: dict[str, Any]) -> str:
    verdict = "same person" if result["same"] else "different people"
    photos = " and ".join(f"{count:,} {'photo' if count == 1 else 'photos'}" for count in result["photos"])
    return (f"{verdict}\nscore: {result['score']:.4f} (cosine)\n"
            f"threshold: {result['threshold']:.4f}, {result['threshold_from']}\n"
            f"compared: {photos}, with {result['backbone']}")


def _of_starter() -> Path:
    from facesyn_cli.artifacts.starter_files import PACKAGED, find_starter, is_packaged
    from facesyn_cli.errors import UserError

    if not is_packaged():
        raise UserError("compare needs the weights of a recognizer: --weights FILE")
    log.info("starter: recognizer of the packaged starter; --weights chooses another one")
    return find_starter(PACKAGED).part("embedder")
