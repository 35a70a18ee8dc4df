"""`facesyn push`: publish a finished folder on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Json, print_result, start

EXAMPLES: tuple[str, ...] = (
    "facesyn push runs/a/7-fr me/recognizer --license cc-by-nc-4.0",
    "facesyn push runs/a/6-records me/faces --dry-run",
    "facesyn push runs/a/9-report me/faces-report --public --license cc-by-4.0",
)


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Finished folder of a stage, or a starter.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository owner/name; made if there is none.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a new repository: only you, or everybody.")
    ] = True,
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="License by its name on the hub, such as cc-by-nc-4.0; default: the card's.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch, made if there is none; default main.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    allow_real: Annotated[
        bool, typer.Option("--allow-real", help="Also push photos of real people, or faces of unknown origin.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pushed, and exit.")] = False,
    json: Json = False,
) -> None:
    """Publish a folder on the Hugging Face Hub.

    Weights and starters go to a model repository, sets, tables and reports to a dataset repository. A new repository is
    private: faces are sensitive. Log in with `hf auth login`, or set HF_TOKEN. Checkpoints and caches are left out,
    absolute paths in headers are removed, and a card (README.md) is added unless the folder has one.
    """
    start()
    from facesyn_cli.stages.push import push

    result = push(folder, repo, private, revision, message, license, allow_real, dry_run)
    print_result(result, json, _render)


def _render(result: dict[str, Any]) -> str:
    from facesyn_cli.artifacts.outcome import render_summary

    left_out = ", ".join(f"{reason}: {number} files" for reason, number in result["left_out"].items())
    words = {
        "left_out": left_out or "nothing",
        "private": None,
        "visible_to": "you only" if result["private"] else "everybody",
        "license": result["license"] or "not stated",
        "size": f"{result['bytes'] / 1e6:,.2f} MB",
        "bytes": None,
        "without_local_paths": ", ".join(result["without_local_paths"][:3]) or None,
        "deleted": ", ".join(result.get("deleted", [])[:3]) or None,
    }
    return render_summary({key: value for key, value in {**result, **words}.items() if value is not None})
