"""`facesyn report`."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import stage_command


@stage_command("report")
def _report(
    sets: Annotated[list[Path] | None, typer.Option("--set", hidden=True)] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Real training images: leakage and quality are measured against them.")
    ] = None,
    judges: Annotated[
        list[Path] | None, typer.Option("--judge", help="Weights of a recogniser that judges; may be repeated.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV with a column `identity` or `key`, then one column an attribute.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Look at whole identities of a set up to so many images; default: all.")
    ] = None,
) -> dict[str, Any]:
    """See what you made: quality, diversity, privacy and pictures of image sets, or of the run in --work."""
    return {"sets": sets or None, "reference": reference, "judges": judges or None, "groups": groups,
            "max_images": max_images}


def command(**values: Any) -> None:
    """Tell the sets from the settings among the words given, and run the stage."""
    words = values["overrides"] or []
    is_set = {word: "=" not in word or Path(word).exists() for word in words}
    values["overrides"] = [word for word in words if not is_set[word]]
    values["sets"] = [*(values["sets"] or []), *(Path(word) for word in words if is_set[word])]
    _report(**values)


_WORDS = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SET | KEY=VALUE]...", help="Folders, zips or packed sets; and any key of the recipe."),
]
command.__doc__ = _report.__doc__
command.__signature__ = inspect.Signature([
    parameter.replace(annotation=_WORDS) if parameter.name == "overrides" else parameter
    for parameter in inspect.signature(_report).parameters.values()
])
command.__annotations__ = {name: p.annotation for name, p in command.__signature__.parameters.items()}
