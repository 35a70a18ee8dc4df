"""`facesyn bench`: the speed of the stages on this machine, beside the plain loop that published code runs.

Both run on the same networks with random weights and on the same images, random ones or given ones. `sample` also
measures each inference option alone, and all of them together; `reading` has no network. `scale` measures every stage,
without a plain loop, on growing sets; `classifier` measures steps of recognition training with many identities.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.outcome import show_value
from facesyn_cli.artifacts.text_tables import Block, Column, Table
from facesyn_cli.bench.classifier_bench import bench_classifier
from facesyn_cli.bench.machine import Machine
from facesyn_cli.bench.reading_bench import bench_reading
from facesyn_cli.bench.sample_bench import SampleBench
from facesyn_cli.bench.scale_bench import bench_scale
from facesyn_cli.bench.settings import ALONE, SMALL, SUBJECTS, BenchConfig
from facesyn_cli.bench.stage_bench import RunStage, bench_stage
from facesyn_cli.errors import UserError, did_you_mean

_RANKS = {  # as of `Column`; 1 of the others
    "images/s": 0, "speedup": 0, "seconds a step": 0, "processor s/1,000": 0, "images in the set": 0,
    "seconds": 2, "images": 3, "wall s": 2, "of": 2, "count": 2, "resumed": 3, "centers and state MiB": 2,
}

__all__ = ["ALONE", "SMALL", "SUBJECTS", "BenchConfig", "bench", "blocks"]


def bench(subject: str, cfg: BenchConfig, run_stage: RunStage) -> dict[str, Any]:
    """Measure one stage.

    Args:
        subject: One of `SUBJECTS` or `ALONE`.
        cfg: Settings.
        run_stage: Runs a stage; stages do not import each other.

    Returns:
        JSON values: `machine`, `network`, `runs` (the plain loop first), `speedup` and, for sample, `options`; of
        reading `network` holds the sizes of batches and workers.

    Raises:
        UserError: There is no such subject or device.
    """
    known = (*SUBJECTS, *ALONE)
    if subject not in known:
        raise UserError(f"unknown subject {subject!r}{did_you_mean(subject, known)}")
    machine = Machine(cfg)
    with tempfile.TemporaryDirectory(prefix="facesyn-bench-") as folder:
        if subject == "classifier":
            return bench_classifier(cfg, machine)
        if subject == "scale":
            return bench_scale(cfg, machine, cfg.folder or Path(folder))
        if subject == "sample":
            return SampleBench(cfg, machine, Path(folder)).result()
        if subject == "reading":
            return bench_reading(cfg, machine, Path(folder))
        return bench_stage(subject, cfg, machine, Path(folder), run_stage)


def blocks(result: dict[str, Any]) -> list[Block]:
    """Return the result as tables and text."""
    machine = result["machine"]
    pays = result.get("precision that pays")
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in machine["matrix rate"].items())
    about = [
        f"machine: {machine['device']}", f"matrix rate: {rates}; clock: {machine['clock']}",
        f"precision that pays: {machine['precision that pays']} in matrix products"
        + (f", {pays} for this network" if pays else ""),
        "network: " + show_value(result["network"]),
    ]
    tables = [_table(title, rows) for title in ("options", "runs") if (rows := result.get(title))]
    last = [f"{name}: {value}" for name, value in result.items() if name.startswith("speedup")]
    if "seconds for 10,000 x 50" in result:
        last.append(f"seconds for 10,000 x 50: {result['seconds for 10,000 x 50']:,}")
    return ["\n".join(about), *tables, *(["\n".join(last)] if last else [])]


def _rank(name: str) -> int:
    return 0 if name.startswith("images/s at ") else _RANKS.get(name, 1)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table; their names stand in the first column, under the title."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [Column(title, is_text=True), *(Column(name, rank=_rank(name)) for name in names[1:])]
    return Table(columns, [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows])
