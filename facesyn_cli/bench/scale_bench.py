"""`facesyn bench scale`: processor time, memory and disk of every stage, on sets of increasing size.

The networks are so small that the time is that of everything else: reading, writing, joining, sorting, comparing.
Every stage runs in a process of its own, whose processor time and peak memory the system reports.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedding_set import write_embedding_blocks
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.bench import measured_process
from facesyn_cli.bench.machine import Machine, four_digits
from facesyn_cli.bench.random_inputs import write_network
from facesyn_cli.bench.random_networks import random_network
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.parsing import parse_json

_SIDE, _LATENT = 32, 8           # pixels of an image, and side of its latent
_DENOISER = {"name": "dit", "in_channels": 3, "patch": _LATENT, "width": 8, "depth": 1, "heads": 1, "context_width": 8,
             "context_tokens": 0}
_BACKBONE = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 32}
_EMBEDDING_SIZE = 512            # of contexts and of known people
_KNOWN_ROWS = 5                  # known people for each context, for the filter `novel`
_REFERENCE_SHARE = 10            # images of the set for each image of the reference
_RESULTS = "scale.jsonl"         # one line for each measured stage
_STOPPED = 128 + signal.SIGTERM  # exit code of a stage that was stopped


@dataclass(frozen=True)
class _Step:
    """One stage to measure.

    Args:
        name: Name of the row.
        command: Words of the command line.
        of: What is counted.
        count: How many of them the stage makes or reads.
        folder: Folder that it writes.
        stop_at: File after whose appearance the stage is stopped; None: it runs to its end.
        is_shown: False for an input of later stages, which is no row of the table.
    """

    name: str
    command: Sequence[str]
    of: str
    count: int
    folder: Path
    stop_at: Path | None = None
    is_shown: bool = True


def bench_scale(cfg: BenchConfig, machine: Machine, folder: Path) -> dict[str, Any]:
    """Measure every stage on sets of `cfg.sizes` images; return JSON values.

    Rows that an earlier run measured in the same folder are not measured again.

    Raises:
        UserError: A stage failed.
    """
    results = folder / _RESULTS
    lines = [parse_json(line) for line in results.read_text().splitlines()] if results.is_file() else []
    done = {(row["name"], row["images in the set"]): row for row in lines}
    rows = []
    for size in cfg.sizes:
        work = folder / str(size)
        for step in _steps(work, size, cfg.per_id, machine.device.type):
            if (row := done.get((step.name, size))) is None:
                log.info(f"bench: {step.name}, {size:,} images")
                row = {"name": step.name, "images in the set": size, **_measure(step, work / "logs")}
                with open(results, "a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(row)}\n")
            if step.is_shown:
                rows.append(row)
    return {"subject": "scale", "machine": machine.to_json(), "network": {"image side": _SIDE},
            "runs": _with_growth(rows)}


def _steps(work: Path, images: int, per_id: int, device: str) -> Iterator[_Step]:
    """Write the inputs and yield the stages in order."""
    ids = max(2, images // per_id)
    images = ids * per_id
    _write_inputs(work, _KNOWN_ROWS * ids)
    common = ("--work", str(work), "--device", device)
    contexts = ("gen-contexts", *common, "--source", "sphere", "--count", str(ids))
    sample = ("sample", *common, "--per-id", str(per_id), "layout=tar", "format=jpeg", "batch_size=64",
              "scheduler={name: ddim, steps: 1}", "strip_every=0", "contact_sheet=false")
    recognizer = str(work / "recognizer")
    reference, refer_ids = work / "reference", max(2, ids // _REFERENCE_SHARE)
    novel = work / "contexts-novel"
    yield _Step("gen-contexts, unique", (*contexts, "filters=[unique]"), "contexts", ids, work / "3-contexts")
    yield _Step(
        f"gen-contexts, novel among {_KNOWN_ROWS} times as many",
        (*contexts, "filters=[novel]", f"known={work / 'known'}", "--out", str(novel)), "contexts", ids, novel,
    )
    yield _Step("sample, layout=tar", (*sample, "--ids", str(ids)), "images", images, work / "4-samples")
    yield _Step(
        "sample, the reference", (*sample, "--ids", str(refer_ids), "--seed", "1", "--out", str(reference)),
        "images", refer_ids * per_id, reference, is_shown=False,
    )
    yield _Step(
        "augment, photometric", ("augment", *common, "augmentation=photometric"), "images", 2 * images,
        work / "5-augmented",
    )
    yield _Step("pack", ("pack", *common, f"size={_SIDE}"), "images", 2 * images, work / "6-records")
    yield _Step(
        "train-fr, first steps",
        ("train-fr", *common, "epochs=1000", "batch_size=64", "log_every=1", "workers=1",
         *_words("backbone", {**_BACKBONE, "dropout": 0.0})),
        "images", 2 * images, work / "7-fr", stop_at=work / "7-fr" / "metrics.jsonl",
    )
    yield _Step(
        "embed", ("embed", *common, "--images", str(work / "4-samples"), "--weights", recognizer), "images", images,
        work / "1-embeddings",
    )
    yield _Step(
        f"report, a reference of 1/{_REFERENCE_SHARE}",
        ("report", *common, "--judge", recognizer, "--reference", str(reference)), "images",
        images + refer_ids * per_id, work / "9-report",
    )


def _words(section: str, settings: dict[str, Any]) -> list[str]:
    return [f"{section}.{name}={json.dumps(value)}" for name, value in settings.items()]


def _write_inputs(work: Path, num_known: int) -> None:
    """Write LDM, recognizer and the embeddings of known people, which the last is a sign of."""
    if (work / "known" / "facesyn.json").is_file():
        return
    settings = LdmSettings(
        denoiser=_DENOISER, latent_channels=3, latent_size=_LATENT, image_size=_SIDE, output_size=_SIDE,
        autoencoder={"name": "pixels", "settings": {"downscale": _SIDE // _LATENT}, "path": None, "digest": None},
        embedding_size=_EMBEDDING_SIZE,
    )
    denoiser = random_network("denoiser", _DENOISER)
    write_weights(work / "2-ldm", denoiser.state_dict(), settings.model_dump(mode="json"))
    write_network(work / "recognizer", "backbone", _BACKBONE, random_network("backbone", _BACKBONE))
    random = np.random.default_rng(0)
    known = work / "known"
    starts = range(0, num_known, 10_000)
    blocks = (random.standard_normal((min(10_000, num_known - start), _EMBEDDING_SIZE)) for start in starts)
    write_embedding_blocks(known, [f"{row}/0" for row in range(num_known)], _EMBEDDING_SIZE, blocks)
    digest = json_digest(["random", num_known])
    header = Header("EmbeddingSet", "embed", {}, {}, {"images": num_known}, {}, digest)
    write_json(known / "facesyn.json", asdict(header))


def _measure(step: _Step, logs: Path) -> dict[str, Any]:
    """Run a stage and return the cells of its row.

    Raises:
        UserError: It failed.
    """
    is_resumed = step.folder.exists()
    logs.mkdir(parents=True, exist_ok=True)
    log_path = logs / f"{step.name.replace(' ', '-').replace('/', '-')}.txt"
    usage_path = log_path.with_suffix(".json")
    words = [str(usage_path), str(step.stop_at or ""), sys.executable, "-m", "facesyn_cli", *step.command]
    start = time.perf_counter()
    with open(log_path, "a", encoding="utf-8") as output, signals.interruptible():
        process = subprocess.Popen(
            [sys.executable, "-I", measured_process.__file__, *words], stdout=output, stderr=output
        )
        try:
            process.wait()
        except BaseException:
            process.terminate()  # which it passes on; the stage finishes its step
            process.wait()
            raise
    signals.check()
    wall, usage = time.perf_counter() - start, read_json(usage_path)
    if usage["code"] not in (0, _STOPPED if step.stop_at else 0):
        last = log_path.read_text(encoding="utf-8").splitlines()[-1:]
        raise UserError(f"{step.name} ended with exit code {usage['code']}: {' '.join(last)}; see {log_path}")
    seconds = usage["processor s"]
    return {
        "of": step.of, "count": step.count,
        "processor s": four_digits(seconds), "processor s/1,000": four_digits(1000 * seconds / step.count),
        "wall s": four_digits(wall), "peak memory MiB": four_digits(usage["peak MiB"]),
        "disk MiB": four_digits(_disk_bytes(step.folder) / 2**20),
        **({"resumed": "yes"} if is_resumed else {}),
    }


def _disk_bytes(folder: Path) -> int:
    """Return the bytes of the files of a folder; links to files elsewhere count nothing."""
    files = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(info.st_size for info in files if info.st_nlink == 1)


def _with_growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to the rows of the largest set how time and memory grow: the p of count^p.

    Of three sizes or more p is taken between the differences of the last three: what a stage costs without any images
    cancels out, and p is 1 where the rest is linear. Of two sizes it is taken between the values.
    """
    for row in rows:
        of_stage = sorted((r for r in rows if r["name"] == row["name"]), key=lambda r: r["count"])
        if row is of_stage[-1] and len(of_stage) > 1:
            row["growth of time"] = _exponent([(r["count"], r["processor s"]) for r in of_stage])
            row["growth of memory"] = _exponent([(r["count"], r["peak memory MiB"]) for r in of_stage])
    return rows


def _exponent(points: list[tuple[int, float]]) -> float | None:
    """Return p of value ~ a + b count^p; None where the values do not increase."""
    if len(points) > 2:
        (n1, v1), (n2, v2), (n3, v3) = points[-3:]
        points = [(n2 - n1, v2 - v1), (n3 - n2, v3 - v2)]
    (n1, v1), (n2, v2) = points[-2:]
    if min(v1, v2) <= 0 or n1 == n2:
        return None
    return round(math.log(v2 / v1) / math.log(n2 / n1), 2)
