"""`facesyn ablate`: compare whole pipelines, the rows of a table, over seeds."""

from pathlib import Path
from typing import Annotated

import typer

from facesyn_cli.cli.stage_command import (
    DEFAULT_WORK,
    Device,
    Json,
    LogFile,
    Markdown,
    check_forms,
    print_result,
    split_names,
    start,
)
from facesyn_cli.errors import UserError

EXAMPLES = (
    "facesyn ablate --config table1 --dry-run",
    "facesyn ablate --config table1 --real faces/ --pairs lfw.bin --work runs/a",
    "facesyn ablate --config table2 --rows people-80 --seeds 1 train-fr.epochs=5",
)


def command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="STAGE.KEY=VALUE", help="Settings of all rows, for example train-fr.epochs=5."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Table: a YAML file or the name of a built-in one.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the run.")] = DEFAULT_WORK,
    rows: Annotated[str | None, typer.Option(help="Rows to run, comma-separated; default: all.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; can be raised later.")] = None,
    ldm: Annotated[Path | None, typer.Option(help="LDM folder or published checkpoint; default 2-ldm.")] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="Autoencoder weights; default: the LDM's own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Recognizer that embeds faces for contexts.")] = None,
    judge: Annotated[Path | None, typer.Option(help="Recognizer for rows that filter their samples.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder or zip of real faces, for rows of them.")] = None,
    benchmarks: Annotated[str | None, typer.Option(help="Benchmarks, comma-separated.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmarks' files.")] = None,
    pairs: Annotated[list[Path] | None, typer.Option(help="Pair list or .bin file; repeatable.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder or zip with the images that pair lists name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the table; default ablation/NAME in --work.")] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.")] = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan of every row and exit.")] = False,
    json: Json = False,
    markdown: Markdown = False,
    log_file: LogFile = None,
) -> None:
    """Compare whole pipelines by accuracy over seeds."""
    from facesyn_cli.artifacts.outcome import render_summary
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.pipelines.ablation import Ablation

    start(log_file)
    check_forms(json or dry_run, markdown)
    if config is None:
        raise UserError("ablate needs a table: --config NAME or FILE, for example table1")
    flags = {"seeds": seeds, "seed": seed, "device": device, "real": real, "out": out}
    networks = {"ldm": ldm, "autoencoder": autoencoder and str(autoencoder)}
    inputs = {
        "gen-contexts": {**networks, "weights": weights},
        "sample": networks,
        "eval": {"benchmarks": split_names(benchmarks), "data": data, "pairs": pairs or None, "images": images},
    }
    run = Ablation(config, overrides or [], flags, inputs, judge, Work(work), rows)
    if dry_run:
        print_result(run.plan(), json, render_summary)
        return
    failed = run.run()
    table = run.table()
    print_result(run.to_json(table), json, lambda value: [*table.blocks(), f"folder: {run.folder}"], markdown)
    if failed:
        raise UserError(f"{len(failed)} of {run.num_chains} runs failed: {'; '.join(failed)}")
