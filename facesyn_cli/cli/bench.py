"""`facesyn bench`: speed of a stage, beside a plain loop of published code."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.stage_command import Device, Json, LogFile, Markdown, check_forms, print_result, start

EXAMPLES = (
    "facesyn bench sample --small",
    "facesyn bench sample --device cuda --batch-size 256 precision=bf16",
    "facesyn bench reading --images 5000 --json",
)


def command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT", help="sample, embed, train-ldm, train-fr, pack, eval, reading, classifier or scale."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, for example denoiser.channels=64.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Small networks, for a laptop.")] = False,
    images: Annotated[int | None, typer.Option(help="Images of a timed run.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler, or of training.")] = None,
    device: Device = None,
    json: Json = False,
    markdown: Markdown = False,
    log_file: LogFile = None,
) -> None:
    """Measure the speed of a stage, with random weights."""
    start(log_file)
    check_forms(json, markdown)
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.pipelines.stage import resolve_stage, run_stage
    from facesyn_cli.stages.bench import SMALL, bench, blocks

    flags = {"images": images, "batch_size": batch_size, "steps": steps, "device": device}
    cfg = resolve_stage("bench", SMALL if small else {}, overrides or [], flags)

    def run(name: str, settings: dict[str, Any], work: Path) -> Any:
        return run_stage(name, resolve_stage(name, settings, [], {}), Work(work))

    print_result(bench(subject, cfg, run), json, blocks, markdown)
