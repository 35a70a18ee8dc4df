"""`facesyn demo`: from the packaged starter to faces, a trained recognizer and a report."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import Device, Json, LogFile, Markdown, check_forms, print_result, start

EXAMPLES = (
    "facesyn demo",
    "facesyn demo --work runs/demo --seed 1",
    "facesyn demo --device cuda --json",
)


def command(
    work: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("facesyn-demo"),
    starter: Annotated[Path | None, typer.Option(metavar="DIR", help="Another starter than the packaged one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    device: Device = None,
    json: Json = False,
    markdown: Markdown = False,
    log_file: LogFile = None,
) -> None:
    """Sample faces, train a recognizer on them, write a report."""
    start(log_file)
    check_forms(json, markdown)
    from facesyn_cli.artifacts.starter_files import PACKAGED, find_starter
    from facesyn_cli.cli import next_step
    from facesyn_cli.pipelines.demo import blocks, run_demo

    results = run_demo(work, find_starter(starter or PACKAGED), seed, device)
    print_result(results, json, blocks, markdown)
    next_step.show(next_step.after_page(Path(results["report"]["folder"])), json)
