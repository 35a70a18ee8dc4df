"""`facesyn demo`: from faces that nobody has to a recognizer and a report, with nothing but the package."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from facesyn_cli.cli.run import run_recipe
from facesyn_cli.cli.stage_command import print_json, resolve_stage, run_stage, start
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError

_MEANING = (
    "What this shows: whether a network that has seen nothing but generated faces tells apart people it has not seen.\n"
    "What it does not show: how it does on photos. All people here come from one generator, and their faces differ\n"
    "less than photos do; figures on pairs of real photos are in the README."
)


def command(
    work: Annotated[
        Path | None, typer.Option(help="Folder of the demo; default facesyn-demo, with --drawn facesyn-demo-drawn.")
    ] = None,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="On drawn faces, with everything trained here; minutes more.")
    ] = False,
    starter: Annotated[Path | None, typer.Option(metavar="DIR", help="Another starter than the packaged one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Also write messages to this file.")] = None,
) -> None:
    """Sample faces of the starter, train a recognizer on them, evaluate it, and write a report."""
    start(log_file)
    if drawn and starter is not None:
        raise UserError("--drawn needs no starter; leave one of the two out")
    from facesyn_cli.artifacts.starter_files import PACKAGED, find_starter, is_packaged

    if not drawn and starter is None and not is_packaged():
        log.warning("demo: no starter is packaged with this facesyn; the demo runs on drawn faces")
        drawn = True
    if drawn:
        results = run_drawn_demo(work or Path("facesyn-demo-drawn"), seed, device)
    else:
        results = run_demo(work or Path("facesyn-demo"), find_starter(starter or PACKAGED), seed, device)
    if not is_first_process():
        return
    if json:
        print_json(results)
    else:
        typer.echo(results["text"])


def run_demo(
    path: Path, starter: Any, seed: int, device: str | None, sections: dict[str, dict[str, Any]] | None = None,
    sizes: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Go from the starter's contexts to a report.

    The recognizer trained on generated faces, the same network untrained, and the starter's own recognizer are
    evaluated on the same pairs of held-out people.

    Args:
        path: Folder of the demo.
        starter: A `Starter`.
        seed: Seed of everything.
        device: Where to compute; None: auto.
        sections: Settings of each stage; None: those of the recipe `demo`.
        sizes: Settings of `StarterDemoConfig`; None: its defaults.
    """
    from facesyn_cli.artifacts.preview_pictures import SHEET, picture_path
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.recipe import load_recipe
    from facesyn_cli.distributed import processes
    from facesyn_cli.stages.demo import (
        TEST_CONTEXTS,
        TEST_FOLDER,
        StarterDemoConfig,
        pairs_path,
        split_contexts,
        write_untrained,
    )

    begin = time.monotonic()
    work, flags = Work(path), {"seed": seed, "device": device}
    sections = dict(sections or load_recipe("demo"))
    cfg = StarterDemoConfig(seed=seed, **(sizes or {}))
    log.info(f"demo in {path}: faces of the starter -> recognizer -> table and report")
    embedder, untrained, test = starter.part("embedder"), path / "0-untrained", path / TEST_FOLDER
    group = processes(device or "auto")
    if group.is_first:
        split_contexts(cfg, starter.part("contexts"), work)
        write_untrained(sections["train-fr"], seed, untrained)
    group.barrier()
    own = {"ldm": str(starter.part("ldm")), "contact_sheet": True}
    sections["sample"] = {**starter.settings.get("sample", {}), **sections["sample"], **own}
    held_out = {"per_id": cfg.test_samples, "contexts": str(path / TEST_CONTEXTS), "out": str(test)}
    run_stage("sample", resolve_stage("sample", {**sections["sample"], **held_out}, [], flags), work)
    benchmark = {"pairs": [str(pairs_path(work))], "images": str(test)}
    sections["eval"] = {**sections["eval"], **benchmark}
    sections["report"] = {**sections["report"], "judges": [str(embedder)]}
    results = run_recipe(sections, path, [], flags)
    for name, weights in (("untrained", untrained), ("embedder", embedder)):
        other = {**benchmark, "weights": str(weights), "out": str(path / f"8-table-{name}")}
        results[f"eval of the {name}"] = run_stage("eval", resolve_stage("eval", other, [], flags), work).summary
    results["seconds"] = round(time.monotonic() - begin, 1)
    if is_first_process():
        table, control, upper = _tables(path)
        sampled = results["sample"]
        results["text"] = (
            f"trained on {sampled['images']} generated faces of {sampled['identities']} people alone,"
            f" verified on pairs of {cfg.test_identities} other generated people (chance is 50 %):\n{table}\n\n"
            f"the same network untrained:\n{control}\n\n"
            f"the starter's recognizer, which the faces were made to please:\n{upper}\n\n{_MEANING}\n\n"
            f"look at {picture_path(work.folder('samples'), SHEET)}, read {work.folder('report') / 'report.html'};"
            f" everything is in {path}; {results['seconds']} s"
        )
    return results


def run_drawn_demo(path: Path, seed: int, device: str | None) -> dict[str, Any]:
    """Draw faces, train an embedder on them, then run the eight stages of the recipe `demo-drawn`.

    The recognizer trained on generated faces, the same network untrained, and the embedder trained on the
    drawn faces are all evaluated on the same held-out identities.
    """
    from facesyn_cli.artifacts.image_set import ImageSet
    from facesyn_cli.artifacts.work import Work
    from facesyn_cli.config.recipe import load_recipe
    from facesyn_cli.report.contact_sheet import write_contact_sheet
    from facesyn_cli.stages.demo import CONTEXTS_FOLDER, TEST_FOLDER, pairs_path, write_untrained

    begin = time.monotonic()
    work = Work(path)
    flags = {"seed": seed, "device": device}
    sections = load_recipe("demo-drawn")
    log.info(f"demo in {path}: drawn faces -> embedder -> LDM -> new identities -> recognizer -> table")
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
    table, control, upper = _tables(path)
    results["text"] = (
        f"trained on generated faces only, verified on held-out drawn identities (chance is 50 %):\n{table}\n\n"
        f"the same network untrained:\n{control}\n\n"
        f"the embedder, trained on the drawn faces themselves:\n{upper}\n\n"
        f"look at {sheet}; everything is in {path}; {results['seconds']} s"
    )
    return results


def _tables(path: Path) -> tuple[str, ...]:
    """Return the tables of the trained network, the untrained one, and the embedder."""
    folders = ("8-table", "8-table-untrained", "8-table-embedder")
    return tuple((path / folder / "table.md").read_text(encoding="utf-8").strip() for folder in folders)
