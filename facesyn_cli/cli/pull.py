"""`facesyn pull`: download what was pushed, or weights of others."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start

EXAMPLES: tuple[str, ...] = (
    "facesyn pull owner/recognizer",
    "facesyn pull datasets/owner/faces --out runs/b/6-records",
    "facesyn pull sd-vae-ft-mse",
)


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="REPO", help="Repository of the hub, name in `facesyn models list`, or https address."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: the repository's name, for other weights "
                     "./weights."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of the repository; default main.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Checksum that a single file must have.")] = None,
    json: Json = False,
) -> None:
    """Download a pushed folder, or weights, and verify it.

    A folder that `facesyn push` published appears whole, after every digest has been verified; an interrupted download
    resumes. A name without `models/` or `datasets/` in front is a model if there is one of that name, else a dataset.
    """
    start()
    from facesyn_cli.cli import next_step
    from facesyn_cli.stages.pull import pull

    result = pull(name, out, revision, sha256)
    print_result(result, json, _render)
    if "kind" in result:
        next_step.show(next_step.after_pull(result["kind"], Path(result["folder"])), json)


def _render(result: dict[str, Any]) -> str:
    from facesyn_cli.artifacts.outcome import render_summary

    size = {"size": f"{result['bytes'] / 1e6:,.2f} MB"} if "bytes" in result else {}
    return render_summary({key: value for key, value in {**result, **size}.items() if key != "bytes"})
