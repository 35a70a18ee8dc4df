"""`facesyn bench`: the speed of the stages on this machine, beside the plain loop that published code runs.

Both run on the same networks with random weights and on the same images, random ones or given ones. `sample` also
measures each inference option alone, and all of them together; `reading` has no network. `scale` measures every stage,
without a plain loop, on growing sets; `classifier` measures steps of recognition training with many identities.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.text_tables import aligned
from facesyn_cli.bench.classifier_bench import bench_classifier
from facesyn_cli.bench.machine import Machine
from facesyn_cli.bench.reading_bench import bench_reading
from facesyn_cli.bench.sample_bench import SampleBench
from facesyn_cli.bench.scale_bench import bench_scale
from facesyn_cli.bench.settings import ALONE, SMALL, SUBJECTS, BenchConfig
from facesyn_cli.bench.stage_bench import RunStage, bench_stage
from facesyn_cli.errors import UserError, did_you_mean

__all__ = ["ALONE", "SMALL", "SUBJECTS", "BenchConfig", "bench", "render"]


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


def render(result: dict[str, Any]) -> str:
    """Return the result as tables for people."""
    machine = result["machine"]
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in machine["matrix rate"].items())
    lines = [f"{machine['device']}; matrix rate: {rates}; clock: {machine['clock']}"]
    pays = result.get("precision that pays")
    lines.append(f"precision that pays: {machine['precision that pays']} in matrix products"
                 + (f", {pays} for this network" if pays else ""))
    network = ", ".join(f"{name} {value}" for name, value in result["network"].items())
    lines += [network, ""]
    for title in ("options", "runs"):
        if rows := result.get(title):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            cells = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
            lines += [aligned([[title, *columns[1:]], *cells]), ""]  # the first column holds the names
    lines += [f"{name}: {value}" for name, value in result.items() if name.startswith("speedup")]
    if "seconds for 10,000 x 50" in result:
        lines.append(f"seconds for 10,000 x 50: {result['seconds for 10,000 x 50']:,}")
    return "\n".join(lines)
