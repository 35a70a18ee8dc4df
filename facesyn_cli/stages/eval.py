"""`facesyn eval`: how well does a recognizer verify?

Each benchmark's result is kept as soon as it is there, so a killed run goes on with the next one. A
benchmark that turns out broken does not lose the others: they are evaluated, the table says why one is
missing, and the command ends with exit code 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError, field_validator
from torch import nn

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import read_json, write_atomically, write_json
from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_shared_output
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
from facesyn_cli.console import log, progress
from facesyn_cli.data.sharding import share
from facesyn_cli.distributed import check_device, processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions
from facesyn_cli.evaluation.identification import IdentificationSet
from facesyn_cli.evaluation.pairs import PairSet, is_bin, read_bin, read_pairs
from facesyn_cli.evaluation.protocol import embed_images, pair_distances, sum_up
from facesyn_cli.evaluation.templates import TemplateSet
from facesyn_cli.models.loading import LoadedBackbone, load_backbone
from facesyn_cli.plugins import registry


class EvalConfig(StageConfig):
    """Settings of `facesyn eval`."""

    weights: Path | None = input_path(None, "weights of the recognizer; None: 7-fr of the run")
    backbone: PluginConfig | None = PluginSection("backbone", default=None)  # None: read off the weights
    benchmarks: list[PluginConfig] = PluginList("benchmark", [])  # read from `data`
    data: Path | None = input_path(None, "folder of the benchmarks' files")
    pairs: list[Path] = input_path([], "pair lists, or .bin files of any name")
    images: Path | None = input_path(
        None, "folder or zip with the images that lists name; None: `data`, or 0-images of the run for --pairs"
    )
    flip: bool = affects_result(True, "flip test, as published")
    resize: bool = affects_result(False, "resize images of another size (their central squares); published: never")
    precision: Literal["fp32", "bf16", "fp16"] = affects_result("fp32", "number format of the network")
    batch_size: int = batch_setting(64, "images a batch", ge=1)
    workers: int = runtime_only(4, "threads that read and decode, per process", ge=1)

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value


@dataclass(frozen=True)
class _Task:
    """One benchmark to evaluate: its name in the table, and how to read it."""

    name: str
    load: Callable[[], PairSet | TemplateSet | IdentificationSet]
    group: str | None = None


@dataclass(frozen=True)
class _Inputs:
    backbone: LoadedBackbone
    tasks: list[_Task]
    parents: dict[str, Parent]
    folder: Path


def plan(cfg: EvalConfig, work: Work) -> dict:
    """Say what `run` would do; reads the benchmarks to count their images."""
    if cfg.device != "auto":
        check_device(cfg.device)
    inputs = _open_inputs(cfg, work)
    state = check_output(inputs.folder, "BenchmarkTable", cfg, inputs.parents)
    benchmarks, num_images = {}, 0
    for task in inputs.tasks:
        content = task.load()
        folds = f", {content.folds} folds" if isinstance(content, PairSet) else ""
        what = "probes" if isinstance(content, IdentificationSet) else "pairs"
        benchmarks[task.name] = f"{len(content)} {what} of {len(content.images)} images{folds}"
        flips = cfg.flip if isinstance(content, PairSet) else content.flip
        num_images += -(-len(content.images) // cfg.batch_size) * cfg.batch_size * (2 if flips else 1)
    return {
        "backbone": inputs.backbone.name,
        "benchmarks": benchmarks,
        "network evaluations": 0 if state == "finished" else num_images,
        "folder": f"{inputs.folder} ({state})",
    }


def run(cfg: EvalConfig, work: Work) -> Outcome:
    """Evaluate every benchmark and write the table.

    Raises:
        UserError: An input is missing or wrong, or a benchmark failed (after the others were evaluated).
    """
    group = processes(cfg.device)
    inputs = _open_inputs(cfg, work)
    folder = inputs.folder
    with open_shared_output(group, folder, "BenchmarkTable", "eval", cfg, inputs.parents) as output:
        if output.finished:
            return _outcome(folder)
        network = inputs.backbone.module.to(group.device)
        options = EmbedOptions(
            size=inputs.backbone.input_size, batch_size=cfg.batch_size, device=group.device, flip=cfg.flip,
            fit="square" if cfg.resize else "exact", precision=cfg.precision, workers=cfg.workers,
        )
        for task in share(inputs.tasks, group.rank, group.world_size):
            row = _finished_row(folder, task.name)
            if row is None or row.problem:
                _evaluate(task, network, options, folder)
        group.barrier()
        rows = [_finished_row(folder, task.name) for task in inputs.tasks]
        if any(row is None for row in rows):
            raise UserError(f"{folder}: a finished result has vanished; run the same command again")
        table = BenchmarkTable(
            backbone=inputs.backbone.name, weights=inputs.backbone.digest, flip=cfg.flip, rows=rows
        )
        if group.is_first:
            table.write(folder)
        failed = [row.problem for row in rows if row.problem]
        if failed:
            if len(failed) < len(rows):
                log.info(table.to_text())
            raise UserError(f"{len(failed)} of {len(rows)} benchmarks failed; {'; '.join(failed)}")
        if group.is_first:
            output.finish(counts={"benchmarks": len(rows), "pairs": sum(row.pairs for row in rows)})
        group.barrier()
        return _outcome(folder)


def _open_inputs(cfg: EvalConfig, work: Work) -> _Inputs:
    """Find and check every input before any work."""
    if not cfg.benchmarks and not cfg.pairs:
        raise UserError(
            "nothing to evaluate: give --benchmarks NAMES with --data FOLDER, or --pairs FILE with --images FOLDER"
        )
    weights = cfg.weights or work.folder("fr")
    if not weights.exists():
        asked = "" if cfg.weights else "; give --weights FILE, or run train-fr first"
        raise UserError(f"{weights} does not exist; the weights of a recognizer were expected{asked}")
    tasks, parents = _benchmark_tasks(cfg)
    more_tasks, more_parents = _pair_tasks(cfg, work)
    tasks += more_tasks
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two benchmarks are called {twice!r}; rename one of the files")
    backbone = load_backbone(weights, cfg.backbone)
    parents = {**parents, **more_parents, "weights": Parent(str(weights), backbone.digest)}
    return _Inputs(backbone, tasks, parents, cfg.out or work.folder("table"))


def _benchmark_tasks(cfg: EvalConfig) -> tuple[list[_Task], dict[str, Parent]]:
    if not cfg.benchmarks:
        return [], {}
    if cfg.data is None:
        names = ", ".join(settings.name for settings in cfg.benchmarks)
        raise UserError(f"benchmarks {names} need --data, the folder of their files")
    if not cfg.data.is_dir():
        raise UserError(f"data: {cfg.data} is not a folder; the folder of the benchmarks' files was expected")
    tasks, parents = [], {}
    for settings in cfg.benchmarks:
        for part in registry.build("benchmark", settings).parts(cfg.data, cfg.images):
            tasks.append(_Task(part.name, part.load, part.group))
            parents.update(part.parents)
    return tasks, parents


def _pair_tasks(cfg: EvalConfig, work: Work) -> tuple[list[_Task], dict[str, Parent]]:
    tasks, parents = [], {}
    images: ImageSet | None = None
    for path in cfg.pairs:
        if is_bin(path):
            tasks.append(_Task(path.stem, lambda path=path: read_bin(path, path.stem)))
        else:
            if images is None:
                images = _pair_images(cfg, work)
                parents["images"] = images.parent()
            pairs = read_pairs(path, images, path.stem)
            tasks.append(_Task(path.stem, lambda pairs=pairs: pairs))
        parents[f"pairs {path.stem}"] = Parent(str(path), file_digest(path))
    return tasks, parents


def _pair_images(cfg: EvalConfig, work: Work) -> ImageSet:
    path = cfg.images or work.folder("images")
    if cfg.images is None and not path.exists():
        raise UserError("a pair list names images: give their folder or zip with --images")
    return ImageSet.open(path)


def _evaluate(task: _Task, network: nn.Module, options: EmbedOptions, folder: Path) -> None:
    """Evaluate one benchmark; its row, and what it was summed up from, are on disk afterwards."""
    try:
        content = task.load()
        with progress(task.name, len(content.images)) as bar:

            def advance(count: int) -> None:
                bar.advance(count)
                signals.check()  # an unfinished benchmark starts again; waiting for its end could take minutes

            if isinstance(content, PairSet):
                distance = pair_distances(network, content, options, advance)
                row, scores = sum_up(content, distance), {"distance": distance, "is_same": content.is_same}
            else:
                own = dataclasses.replace(options, flip=content.flip)
                row, scores = content.judge(embed_images(network, content, own, advance))
    except UserError as error:
        row = BenchmarkRow(benchmark=task.name, problem=str(error))
    else:
        row = row.model_copy(update={"group": task.group})
        with write_atomically(folder / "scores" / f"{task.name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **scores)
    write_json(_row_path(folder, task.name), row.model_dump())


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
    return Outcome(folder, table.to_json(), table.to_text())
