"""The demo: from the starter's contexts to faces, a recognizer trained on them, a benchmark and a report.

The first contexts of the starter are the training identities; the next ones are held out for verification pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from facesyn_cli.artifacts.atomic_files import update_text
from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.artifacts.context_set import ROWS, VECTORS, ContextSet, write_contexts
from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.preview_pictures import SHEET, picture_path
from facesyn_cli.artifacts.starter_files import Starter
from facesyn_cli.artifacts.text_tables import NOT_AVAILABLE, Block, Column, Table, to_text
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result
from facesyn_cli.config.recipe import STAGES, load_recipe
from facesyn_cli.console import log
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.stage import resolve_stage
from facesyn_cli.pipelines.stage_list import Step, run_steps
from facesyn_cli.plugins import registry

TEST_FOLDER = "0-test"
TEST_CONTEXTS = "0-test-contexts"
UNTRAINED = "0-untrained"
FOLDS = 10
_RECOGNIZERS = (  # stage of the results, name, what its figures show
    ("eval", "trained on the generated faces", "what generated faces alone teach a small network"),
    ("eval of the untrained", "the same network, untrained", "what its random weights give, without any training"),
    ("eval of the embedder", "the starter's recognizer", "how well the generator keeps an identity: it follows the "
     "embeddings of this recognizer"),
)
_MEANING = (
    "These figures do not say how well a network does on photos: all people here come from one generator, and their "
    "faces differ less than photos do."
)


class DemoConfig(StageConfig):
    """Sizes of the demo."""

    identities: int = affects_result(40, "identities to train on, the first of the starter's contexts", ge=2)
    test_identities: int = affects_result(16, "held-out identities, the contexts that follow", ge=2)
    test_samples: int = affects_result(6, "faces of each held-out identity", ge=2)
    pairs: int = affects_result(20, "genuine pairs per fold, and as many impostor pairs", ge=1)

    @model_validator(mode="after")
    def _enough_pairs(self) -> DemoConfig:
        genuine = self.test_identities * math.comb(self.test_samples, 2)
        if FOLDS * self.pairs > genuine:
            raise ValueError(f"{FOLDS} folds of {self.pairs} genuine pairs are wanted, {genuine} exist")
        return self


def run_demo(
    path: Path, starter: Starter, seed: int, device: str | None, sections: dict[str, dict[str, Any]] | None = None,
    sizes: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Run the demo.

    The recognizer trained on generated faces, the same network untrained, and the starter's own recognizer are
    evaluated on the same pairs of held-out identities.

    Args:
        path: Folder of the demo.
        starter: Networks and contexts.
        seed: Seed of everything.
        device: Where to compute; None: auto.
        sections: Settings of each stage; None: those of the recipe `demo`.
        sizes: Settings of `DemoConfig`; None: its defaults.

    Returns:
        The summary of every stage, `seconds`, `test_identities`, `folder`, and `text` for a person.

    Raises:
        UserError: The starter has too few contexts, or a stage fails.
    """
    begin = time.monotonic()
    work, flags = Work(path), {"seed": seed, "device": device}
    sections = dict(sections or load_recipe("demo"))
    cfg = DemoConfig(seed=seed, **(sizes or {}))
    log.info(f"demo in {path}: faces of the starter -> recognizer -> table and report")
    group = processes(device or "auto")
    if group.is_first:
        split_contexts(cfg, starter.part("contexts"), work)
        _write_untrained(sections["train-fr"], seed, path / UNTRAINED)
    group.barrier()
    own = {"ldm": str(starter.part("ldm")), "contact_sheet": True}
    sections["sample"] = {**starter.settings.get("sample", {}), **sections["sample"], **own}
    test = path / TEST_FOLDER
    held_out = {"per_id": cfg.test_samples, "contexts": str(path / TEST_CONTEXTS), "out": str(test)}
    benchmark = {"pairs": [str(pairs_path(work))], "images": str(test)}
    sections["eval"] = {**sections["eval"], **benchmark}
    sections["report"] = {**sections["report"], "judges": [str(starter.part("embedder"))]}
    runs = [("sample of the held-out", "sample", {**sections["sample"], **held_out})]
    runs += [(name, name, sections[name]) for name in STAGES if name in sections]
    for name, weights in (("untrained", path / UNTRAINED), ("embedder", starter.part("embedder"))):
        other = {**benchmark, "weights": str(weights), "out": str(path / f"8-table-{name}")}
        runs.append((f"eval of the {name}", "eval", other))
    steps = [Step(title, stage, resolve_stage(stage, section, [], flags)) for title, stage, section in runs]
    results: dict[str, Any] = run_steps(steps, work)
    results["seconds"] = round(time.monotonic() - begin, 1)
    if group.is_first:
        results |= {"test_identities": cfg.test_identities, "folder": str(path)}
        results["text"] = to_text(blocks(results))
    return results


def blocks(results: dict[str, Any]) -> list[Block]:
    """Return the results of `run_demo` for a person: the three recognizers in a table, and where everything lies."""
    sampled, work = results["sample"], Path(results["folder"])
    columns = [Column("recognizer", is_text=True), Column("accuracy %"), Column("EER %"),
               Column("what it shows", is_text=True, rank=1)]
    rows = []
    for stage, name, meaning in _RECOGNIZERS:
        row = BenchmarkRow.model_validate(results[stage]["rows"][0])
        cells = (NOT_AVAILABLE if value is None else f"{100 * value:.2f}" for value in (row.accuracy, row.eer))
        rows.append([name, *cells, meaning])
    return [
        f"{sampled['images']:,} faces of {sampled['identities']:,} people who do not exist were generated, and a "
        f"recognizer was trained on them. All three recognizers verify the same {row.pairs:,} pairs of "
        f"{results['test_identities']:,} other generated people, half of them of one person:",
        Table(columns, rows),
        _MEANING,
        f"faces: {picture_path(Path(sampled['folder']), SHEET)}\n"
        f"report: {Path(results['report']['folder']) / 'report.html'}\nfolder: {work}\nseconds: {results['seconds']}",
    ]


def split_contexts(cfg: DemoConfig, bank: Path, work: Work) -> None:
    """Write `3-contexts`, `0-test-contexts` and the verification pairs of the held-out identities.

    Args:
        cfg: Sizes.
        bank: ContextSet of the starter.
        work: The demo's folder.

    Raises:
        UserError: The starter has too few contexts.
    """
    contexts = ContextSet.open(bank)
    wanted = cfg.identities + cfg.test_identities
    if wanted > len(contexts.identities):
        raise UserError(f"{bank} holds {len(contexts.identities)} contexts; the demo needs {wanted}")
    parts = {work.folder("contexts"): slice(0, cfg.identities),
             work.path / TEST_CONTEXTS: slice(cfg.identities, wanted)}
    for folder, rows in parts.items():
        with open_output(folder, "ContextSet", "demo", cfg, {"contexts": contexts.parent()}) as output:
            if not output.finished:
                names = contexts.identities[rows]
                write_contexts(folder, names, contexts.vectors[rows], contexts.origins[rows], [None] * len(names))
                digest = json_digest([contexts.embedder, *(file_digest(folder / name) for name in (VECTORS, ROWS))])
                output.finish({"contexts": len(names)}, {"embedder": contexts.embedder}, digest)
    names = contexts.identities[cfg.identities : wanted]
    lines = [f"{FOLDS}\t{cfg.pairs}"]
    for a, i, b, j in _random_pairs(cfg):
        lines.append(f"{names[a]}/{i}\t{names[b]}/{j}\t{int(a == b)}")
    update_text(pairs_path(work), "\n".join(lines) + "\n")


def pairs_path(work: Work) -> Path:
    """Return the path of the verification pairs of the held-out identities."""
    return work.path / f"{TEST_FOLDER}-pairs.txt"


def _random_pairs(cfg: DemoConfig) -> Iterator[tuple[int, int, int, int]]:
    """Yield (identity, sample, identity, sample): in each fold `pairs` genuine ones, then as many impostor ones."""
    rng = np.random.default_rng(cfg.seed)
    seen: set[tuple] = set()
    for _ in range(FOLDS):
        for is_genuine in (True, False):
            left = cfg.pairs
            while left:
                a, b = (int(number) for number in rng.choice(cfg.test_identities, 2, replace=False))
                i, j = (int(number) for number in rng.choice(cfg.test_samples, 2, replace=False))
                b = a if is_genuine else b
                pair = min((a, i, b, j), (b, j, a, i))
                if pair not in seen:
                    seen.add(pair)
                    left -= 1
                    yield a, i, b, j


def _write_untrained(train_fr: dict[str, Any], seed: int, folder: Path) -> None:
    """Write the network of a recipe's section `train-fr` with random weights."""
    section = registry.configure("backbone", train_fr["backbone"])
    torch.manual_seed(seed)
    backbone = registry.build("backbone", section)
    config = {
        "kind": "backbone", "backbone": section.model_dump(mode="json"), "input_size": backbone.input_size,
        "embedding_size": backbone.embedding_size,
    }
    write_weights(folder, backbone.state_dict(), config)
