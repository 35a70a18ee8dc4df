"""`facesyn eval`: evaluates a recognizer on verification and identification benchmarks.

The result of each benchmark is written as soon as it is computed; a killed run resumes with the next one. A broken
benchmark does not stop the others: the table holds the reason in its row, and the command ends with exit code 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError, field_validator

from facesyn_cli import distributed, signals
from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json
from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent, require_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_shared_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    StageConfig,
    affects_result,
    batch_setting,
    input_path,
    runtime_only,
)
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes, choose_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.all_pairs import compared
from facesyn_cli.evaluation.benchmarks import Part
from facesyn_cli.evaluation.embedding import FaceEmbedder, settle_precision
from facesyn_cli.evaluation.pairs import PairSet, is_bin, read_bin, read_pairs
from facesyn_cli.evaluation.protocol import EvaluationSet, embed_images
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.models.precision import PrecisionOrAuto
from facesyn_cli.plugins import registry
from facesyn_cli.progress import progress


class EvalConfig(StageConfig):
    """Settings of `facesyn eval`."""

    weights: Path | None = input_path(None, "weights of the recognizer; None: 7-fr of the run")
    backbone: PluginConfig | None = PluginSection("backbone", default=None)  # None: read off the weights
    benchmarks: list[PluginConfig] = PluginList("benchmark", [])  # read from `data`
    data: Path | None = input_path(None, "folder of the benchmarks' files")
    pairs: list[Path] = input_path([], "pair lists, or .bin files of any name")
    images: Path | None = input_path(
        None, "folder or zip with the images that lists name, or of the benchmark folder; None: `data`, or 0-images of "
        "the run for --pairs"
    )
    against: Path | None = input_path(
        None, "folder of an eval of another recognizer on the same images: rows of the benchmark folder get their "
        "differences to it, with 95 % intervals"
    )
    flip: bool = affects_result(True, "flip test, as published")
    resize: bool = affects_result(False, "resize images of another size (their central squares); published: never")
    precision: PrecisionOrAuto = affects_result(
        "fp32", "number format of the network; auto: bf16 where a measurement at the start pays"
    )
    batch_size: int = batch_setting(64, "images a batch", ge=1)
    workers: int = runtime_only(4, "threads that read and decode, per process", ge=1)

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value


@dataclass(frozen=True)
class _Inputs:
    backbone: LoadedBackbone
    parts: list[Part]
    parents: dict[str, Parent]
    folder: Path


def plan(cfg: EvalConfig, work: Work) -> Plan:
    """Return what `run` would do; reads the benchmarks to count their images."""
    device = choose_device(cfg.device)  # an error here, not only in the run
    inputs = _open_inputs(cfg, work)
    cfg = settle_precision(cfg, inputs.folder, "BenchmarkTable", inputs.backbone, device)
    state = check_output(inputs.folder, "BenchmarkTable", cfg, inputs.parents)
    about, counts, evaluations = {}, {"benchmarks": len(inputs.parts), "pairs": 0, "images": 0}, 0
    for part in inputs.parts:
        content = part.load()
        folds = f", {content.folds} folds" if isinstance(content, PairSet) else ""
        about[part.name] = f"{len(content)} {content.unit} of {len(content.images)} images{folds}"
        counts["pairs"] += len(content)
        counts["images"] += len(content.images)
        padded = -(-len(content.images) // cfg.batch_size) * cfg.batch_size
        evaluations += padded * (2 if _flips(cfg, content) else 1)
    return Plan(
        inputs.folder, state, {name: parent.path for name, parent in inputs.parents.items()}, counts,
        {"recognizer": 0 if state == "finished" else evaluations},
        chosen={"backbone": inputs.backbone.name, "precision": cfg.precision, "benchmarks": about},
    )


def run(cfg: EvalConfig, work: Work) -> Outcome:
    """Evaluate every benchmark and write the table.

    Raises:
        UserError: An input is missing or wrong, or a benchmark failed (after the others were evaluated).
    """
    processes = distributed.processes(cfg.device)
    inputs = _open_inputs(cfg, work)
    folder = inputs.folder
    cfg = settle_precision(cfg, folder, "BenchmarkTable", inputs.backbone, processes.device, processes)
    with open_shared_output(processes, folder, "BenchmarkTable", "eval", cfg, inputs.parents) as output:
        if not output.finished:
            finished = processes.from_first(lambda: [_finished_row(folder, part.name) for part in inputs.parts])
            for part, row in zip(inputs.parts, finished, strict=True):
                if row is None or row.problem:
                    _evaluate(part, cfg, inputs, processes)
            processes.from_first(lambda: _finish(cfg, inputs, output))
        return processes.from_first(lambda: _outcome(folder))


def _finish(cfg: EvalConfig, inputs: _Inputs, output: Output) -> None:
    """Write the table and, when no benchmark failed, the header."""
    rows = [_finished_row(inputs.folder, part.name) for part in inputs.parts]
    if any(row is None for row in rows):
        raise UserError(f"{inputs.folder}: a finished result has vanished; run the same command again")
    backbone = inputs.backbone
    table = BenchmarkTable(backbone=backbone.name, weights=backbone.digest, flip=cfg.flip, rows=rows)
    table.write(inputs.folder)
    failed = [row.problem for row in rows if row.problem]
    if failed:
        if len(failed) < len(rows):
            done = [f"{row.benchmark} {100 * row.accuracy:.2f} %" for row in rows if row.accuracy is not None]
            log.info(f"accuracy of the others: {', '.join(done)}; {inputs.folder / 'table.md'} holds all figures")
        raise UserError(f"{len(failed)} of {len(rows)} benchmarks failed; {'; '.join(failed)}")
    output.finish(counts={"benchmarks": len(rows), "pairs": sum(row.pairs for row in rows)})


def _open_inputs(cfg: EvalConfig, work: Work) -> _Inputs:
    """Find and check every input before any work."""
    if not cfg.benchmarks and not cfg.pairs:
        raise UserError(
            "nothing to evaluate: give --benchmarks NAMES with --data FOLDER, --benchmarks folder or --pairs FILE with "
            "--images FOLDER"
        )
    weights = cfg.weights or work.folder("fr")
    if not weights.exists():
        raise missing_input(weights, "a file or folder with the weights of a recognizer", "--weights FILE")
    parts = [*_benchmarks(cfg), *_pair_lists(cfg, work)]
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two benchmarks are called {twice!r}; rename one of the files")
    backbone = load_backbone(weights, cfg.backbone)
    parents = {name: parent for part in parts for name, parent in part.parents.items()}
    parents["weights"] = Parent(str(weights), backbone.digest)
    if cfg.against is not None:
        parents["against"] = _open_against(cfg.against, parts)
    return _Inputs(backbone, parts, parents, cfg.out or work.folder("table"))


def _open_against(folder: Path, parts: list[Part]) -> Parent:
    """Check that another eval compared all pairs of the same images, and return it.

    Raises:
        UserError: It did not, or is unfinished.
    """
    header = require_header(folder, "BenchmarkTable")
    folders = [part for part in parts if part.all_pairs_of is not None]
    if not folders:
        raise UserError("against compares rows of the benchmark folder: give --benchmarks folder --images FOLDER")
    for part in folders:
        theirs = header.parents.get(f"images of {part.name}")
        if theirs is None or theirs.digest != part.all_pairs_of.digest:
            raise UserError(f"against: {folder} holds no row of all pairs of the images in {part.all_pairs_of.path}; "
                            "evaluate both recognizers with --benchmarks folder on the same images")
    return Parent(str(folder), header.digest)


def _benchmarks(cfg: EvalConfig) -> list[Part]:
    """Return the parts of the named benchmarks."""
    built = [(settings.name, registry.build("benchmark", settings)) for settings in cfg.benchmarks]
    of_files = [name for name, benchmark in built if getattr(benchmark, "needs_data", True)]
    if of_files and cfg.data is None:
        raise UserError(f"benchmarks {', '.join(of_files)} need --data, the folder of their files")
    if of_files and not cfg.data.is_dir():
        raise UserError(f"data: {cfg.data} is not a folder; the folder of the benchmarks' files was expected")
    return [part for _, benchmark in built for part in benchmark.parts(cfg.data, cfg.images)]


def _pair_lists(cfg: EvalConfig, work: Work) -> list[Part]:
    """Return a part for each pair list or `.bin` of any name."""
    parts = []
    images: ImageSet | None = None
    for path in cfg.pairs:
        parents = {f"pairs {path.stem}": Parent(str(path), file_digest(path))}
        if is_bin(path):
            parts.append(Part(path.stem, parents, partial(read_bin, path, path.stem)))
            continue
        if images is None and cfg.images is None and not work.folder("images").exists():
            raise UserError("a pair list names images: give their folder or zip with --images")
        images = images or ImageSet.open(cfg.images or work.folder("images"))
        pairs = read_pairs(path, images, path.stem)
        parts.append(Part(path.stem, {**parents, "images": images.parent()}, lambda pairs=pairs: pairs))
    return parts


def _flips(cfg: EvalConfig, content: EvaluationSet) -> bool:
    return cfg.flip if content.flip is None else content.flip


def _evaluate(part: Part, cfg: EvalConfig, inputs: _Inputs, processes: Processes) -> None:
    """Evaluate one benchmark and write its row, and the scores behind it. A collective."""
    scores: dict[str, np.ndarray] = {}

    def evaluate() -> BenchmarkRow:
        row, found = content.evaluate(vectors)
        scores.update(found)
        if cfg.against is not None and part.all_pairs_of is not None:
            row = compared(row, found, cfg.against / "scores" / f"{part.name}.npz")
        return row.model_copy(update={"group": part.group})

    try:
        content = _load(part, processes)
        with progress(part.name, -(-len(content.images) // processes.world_size)) as bar:

            def advance(count: int) -> None:
                bar.advance(count)
                signals.check()  # an unfinished benchmark starts again; waiting for its end could take minutes

            embedder = FaceEmbedder.of(
                inputs.backbone, processes.device, cfg.batch_size, flip=_flips(cfg, content),
                fit="square" if cfg.resize else "exact", precision=cfg.precision, workers=cfg.workers,
            )
            vectors = embed_images(embedder, content, processes, advance)
        row = processes.from_first(evaluate)
    except UserError as error:
        row = BenchmarkRow(benchmark=part.name, problem=str(error))
    processes.from_first(lambda: _write(inputs.folder, part.name, row, scores))


def _load(part: Part, processes: Processes) -> EvaluationSet:
    """Return the content of a benchmark; an error in one process is raised in all. A collective."""
    content, problem = None, ""
    try:
        content = part.load()
    except UserError as error:
        problem = str(error)
    processes.raise_in_all(problem)
    return content


def _write(folder: Path, name: str, row: BenchmarkRow, scores: dict[str, np.ndarray]) -> None:
    if not row.problem:
        with write_atomically(folder / "scores" / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **scores)
    write_json(_row_path(folder, name), row.model_dump())


def _row_path(folder: Path, name: str) -> Path:
    return folder / "results" / f"{name}.json"


def _finished_row(folder: Path, name: str) -> BenchmarkRow | None:
    path = _row_path(folder, name)
    if not path.is_file():
        return None
    try:
        return BenchmarkRow.model_validate(read_json(path))
    except (UserError, ValidationError) as error:
        log.warning(f"{path} is damaged, evaluating {name} again: {' '.join(str(error).split())[:120]}")
        return None


def _outcome(folder: Path) -> Outcome:
    table = BenchmarkTable.read(folder)
    return Outcome(folder, table.to_json(), [table.to_table()])
