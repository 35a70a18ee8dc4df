"""`facesyn demo`: the whole way in miniature, with nothing but the package."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.run import run_recipe
from facesyn_cli.cli.stage_command import print_json, resolve_stage, run_stage, start
from facesyn_cli.console import is_first_process, log


def command(
    work: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("facesyn-demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write messages to this file.")] = None,
) -> None:
    """Go the whole way in miniature, on drawn faces."""
    start(log_file)
    results = run_demo(work, seed, device)
    if not is_first_process():
        return
    if json:
        print_json(results)
    else:
        typer.echo(results["text"])


def run_demo(path: Path, seed: int, device: str | None) -> dict[str, Any]:
    """Draw faces, train an embedder on them, then run the eight stages of the recipe `demo`.

    The recogniser trained on generated faces, the same network untrained, and the embedder trained on the
    drawn faces are all evaluated on the same held-out identities.
    """
    from facesyn_cli.artifacts.images import ImageSet
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.recipe import load_recipe
    from facesyn_cli.report.contact_sheet import write_contact_sheet
    from facesyn_cli.stages.demo import CONTEXTS_FOLDER, TEST_FOLDER, pairs_path, write_untrained

    begin = time.monotonic()
    work = Work(path)
    flags = {"seed": seed, "device": device}
    sections = load_recipe("demo")
    log.info(f"demo in {path}: drawn faces -> embedder -> LDM -> new identities -> recogniser -> table")
    run_stage("demo", resolve_stage("demo", {}, [], flags), work)
    embedder = path / "0-embedder"
    teach = {**sections["train-fr"], "inputs": [str(work.folder("images"))], "out": str(embedder)}
    run_stage("train-fr", resolve_stage("train-fr", teach, [], flags), work)
    benchmark = {"pairs": [str(pairs_path(work))], "images": str(path / TEST_FOLDER)}
    sections["embed"] = {**sections["embed"], "weights": str(embedder)}
    contexts = {"weights": str(embedder), "images": str(path / CONTEXTS_FOLDER)}
    sections["gen-contexts"] = {**sections["gen-contexts"], **contexts}
    sections["eval"] = {**sections["eval"], **benchmark}
    untrained = path / "0-untrained"
    if is_first_process():
        write_untrained(sections["train-fr"], seed, untrained)  # other processes read it after the stages in between
    results = run_recipe(sections, path, [], flags)
    for name, weights in (("untrained", untrained), ("embedder", embedder)):
        other = {**benchmark, "weights": str(weights), "out": str(path / f"8-table-{name}")}
        results[f"eval of the {name}"] = run_stage("eval", resolve_stage("eval", other, [], flags), work).summary
    sheet = path / "samples.png"
    if is_first_process():
        write_contact_sheet(ImageSet.open(work.folder("samples")), sheet)
    results["seconds"] = round(time.monotonic() - begin, 1)
    results["text"] = _text(path, results, sheet)
    return results


def _text(path: Path, results: dict[str, Any], sheet: Path) -> str:
    """Return what the demo found, in words."""
    table, untrained, upper = (
        (path / folder / "table.md").read_text(encoding="utf-8").strip()
        for folder in ("8-table", "8-table-untrained", "8-table-embedder")
    )
    return (
        f"trained on generated faces only, verified on held-out drawn identities (chance is 50 %):\n{table}\n\n"
        f"the same network untrained:\n{untrained}\n\n"
        f"the embedder, trained on the drawn faces themselves:\n{upper}\n\n"
        f"look at {sheet}; everything is in {path}; {results['seconds']} s"
    )
