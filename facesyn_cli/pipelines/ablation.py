"""An ablation: plan and run the rows of a table of pipelines, and collect their results."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import update_json, update_text
from facesyn_cli.artifacts.lock import remove_abandoned
from facesyn_cli.artifacts.work import Work
from facesyn_cli.bench.random_networks import flops
from facesyn_cli.config.ablation_rows import (
    ROW_STAGES,
    SHARED_STAGES,
    AblateConfig,
    Row,
    apply_words,
    expand_rows,
    select_rows,
)
from facesyn_cli.config.recipe import TABLE, load_sections
from facesyn_cli.config.resolve import resolve
from facesyn_cli.console import log
from facesyn_cli.distributed import launched_processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.ablation import AblationRow, AblationTable
from facesyn_cli.pipelines.ablation_chains import Chains
from facesyn_cli.pipelines.ablation_steps import (
    FOLDER,
    PARTS,
    TIMES,
    Chain,
    context_evaluations,
    expected_time,
    num_faces,
)
from facesyn_cli.plugins.settings import PluginConfig

_FEWEST_SEEDS = 2  # before a row can be decided


class Ablation:
    """A table, the chains of its rows, and the selected rows.

    Args:
        name: The table: a file or the name of a built-in one.
        words: `stage.key=value` for all rows.
        flags: Settings of the section `ablate`; None means not given.
        inputs: Settings of stages that were given as options, by stage; None means not given.
        judge: Recognizer for rows that filter their samples.
        work: Work folder.
        names: Names of rows, comma-separated; None: all.

    Raises:
        UserError: A setting is wrong or an input of a selected row is missing.
    """

    def __init__(
        self, name: str, words: list[str], flags: dict[str, Any], inputs: dict[str, dict[str, Any]], judge: Path | None,
        work: Work, names: str | None,
    ) -> None:
        if launched_processes() > 1:
            raise UserError("ablate runs in one process; start it once per --seed, then once with all seeds")
        sections = load_sections(name)
        if TABLE not in sections:
            raise UserError(f"{name} is a recipe without rows: a section {TABLE} with rows was expected")
        sections = apply_words(sections, words, (TABLE, *ROW_STAGES, *SHARED_STAGES))
        for stage, given in inputs.items():
            stated = {key: value for key, value in given.items() if value is not None}
            sections[stage] = {**sections.get(stage, {}), **stated}
        self.name = Path(name).stem
        self.cfg: AblateConfig = resolve(AblateConfig, TABLE, sections[TABLE], [], flags)
        self.rows: list[Row] = expand_rows(self.cfg.rows, sections)
        self.selected: list[Row] = select_rows(self.rows, names)
        self.work = work
        self.folder = self.cfg.out or work.path / FOLDER / self.name
        self.seeds = [self.cfg.seed + number for number in range(self.cfg.seeds)]
        self.chains = Chains(self.cfg, sections, self.rows, judge, work)
        self._found: dict[tuple[str, int], Chain] = {}
        self._costs: dict[str, float] = {}
        self._check()

    @property
    def num_chains(self) -> int:
        """Number of selected rows times seeds."""
        return len(self.selected) * len(self.seeds)

    def run(self) -> list[str]:
        """Run what is missing, the first seed of all rows before the second; return the failures.

        The table is written after every run.
        """
        problems: list[str] = []
        failed: dict[str, UserError] = {}
        per_id: Counter[str] = Counter()  # address of samples -> the most per identity that a row needs
        for folder in (self.folder, self.work.path / FOLDER / PARTS, self.work.path / FOLDER / TIMES):
            remove_abandoned(folder)
        self._write()
        todo = [self._found[row.name, seed] for seed in self.seeds for row in self.selected]
        for sample in filter(None, (chain.step("sample") for chain in todo if not chain.is_finished)):
            per_id[sample.address] = max(per_id[sample.address], sample.cfg.per_id)
        for number, chain in enumerate(todo, 1):
            if chain.is_finished and not chain.was_killed:
                continue
            if chain.row.name not in self._needed(chain.seed):
                log.info(f"[{number}/{len(todo)}] {chain.row.name}, seed {chain.seed}: left out, it is decided")
                continue
            log.info(f"[{number}/{len(todo)}] {chain.row.name}, seed {chain.seed}: {chain.images} images")
            try:
                chain.run(self.work, per_id, failed)
            except UserError as error:
                problems.append(f"{chain.row.name}, seed {chain.seed}: {error}")
                log.warning(f"{problems[-1]}; continuing with the next row")
            self._write()
            signals.check()
        return problems

    def table(self) -> AblationTable:
        """Return the table of the finished runs."""
        rows = []
        for row in self.rows:
            chains = self._chains_of(row)
            figures = {chain.seed: chain.figures() for chain in chains if chain.is_finished}
            problems = {chain.seed: chain.problem for chain in chains if chain.problem is not None}
            minutes = {chain.seed: chain.minutes() for chain in chains if chain.is_finished}
            rows.append(AblationRow(row.name, row.title, row.compared, self.seeds, figures, problems, minutes))
        looks = max(1, len(self.seeds) - 1) if self.cfg.stop_decided else 1
        table = AblationTable(self._facts, rows, self.cfg.compare, self.cfg.wanted, looks)
        if not self.cfg.stop_decided:
            return table
        needed = table.needed({row.name for row in self.selected})
        return replace(table, rows=[replace(row, is_decided=row.name not in needed) for row in rows])

    def to_json(self, table: AblationTable) -> dict[str, Any]:
        """Return the table with the settings and the folders behind every row."""
        value = table.to_json()
        for row, entry in zip(self.rows, value["rows"], strict=True):
            chains = self._chains_of(row)
            entry["parts"] = {str(chain.seed): {step.stage: step.address for step in chain.steps} for chain in chains}
            entry["settings"] = {step.stage: step.cfg.to_json() for step in chains[0].steps} if chains else {}
        return value

    def plan(self) -> dict[str, Any]:
        """Return the cost of each selected row, and what is left to run, shared work counted once."""
        rows, left, faces = {}, {}, {}
        for row in self.selected:
            chains = self._chains_of(row)
            first, sample = chains[0], chains[0].step("sample")
            cost = self._cost(first)
            is_filtered = sample is not None and sample.cfg.filter is not None
            unfinished = [chain for chain in chains if not chain.is_finished]
            rows[row.name] = {
                "images": first.images,
                "identities": first.identities,
                "network_evaluations_per_seed": sum(cost.values()),
                **({"rejection_sampling": "adds evaluations"} if is_filtered else {}),
                "seeds": len(chains),
                "seeds_finished": len(chains) - len(unfinished),
            }
            for chain in unfinished:
                for step in chain.steps:
                    if step.stage in cost and not step.is_finished:
                        left[step.address] = max(left.get(step.address, 0), cost[step.stage])
                train = chain.step("train-fr")
                if not train.is_finished:
                    faces[train.address] = num_faces(train, chain.images)
        evaluations, faces_left = sum(left.values()), sum(faces.values())
        return {
            "rows": rows, **self._facts,
            "left": {
                "network_evaluations": evaluations, "training_faces": faces_left,
                **expected_time(self.work, evaluations, faces_left),
            },
            "folder": str(self.folder),
        }

    def _needed(self, seed: int) -> set[str]:
        """Return the selected rows whose run under a seed may decide something."""
        selected = {row.name for row in self.selected}
        is_early = self.seeds.index(seed) < _FEWEST_SEEDS
        return selected if is_early or not self.cfg.stop_decided else self.table().needed(selected)

    def _chains_of(self, row: Row) -> list[Chain]:
        """Return the chains of a row under all seeds, without those with a mistake."""
        return [self._found[row.name, seed] for seed in self.seeds if (row.name, seed) in self._found]

    def _cost(self, chain: Chain) -> dict[str, int]:
        """Return a lower bound of the denoiser evaluations by stage; checks the inputs of these stages."""
        cost = {}
        contexts, sample = chain.step("gen-contexts"), chain.step("sample")
        if contexts is not None:
            if contexts.address not in self._costs:
                self._costs[contexts.address] = context_evaluations(contexts, self.work)
            cost["gen-contexts"] = round(self._costs[contexts.address] * contexts.cfg.count)
        if sample is not None:
            cost["sample"] = self.chains.evaluations(sample) * sample.cfg.ids * sample.cfg.per_id
        return cost

    @cached_property
    def _facts(self) -> dict[str, str]:
        """What all rows share, as text."""
        train, judge = self.chains.shared["train-fr"], self.chains.shared["eval"]
        benchmarks = [cfg.name for cfg in judge.benchmarks] + [path.stem for path in judge.pairs]
        return {
            "table": self.name,
            "benchmark": ", ".join(benchmarks),
            "recognizer": (
                f"{train.backbone.name}, {_num_gflops(train.backbone):.3g} GFLOP an image; {train.head.name}, "
                f"{train.epochs} epochs, batch size {train.batch_size}"
            ),
            "seeds": (
                f"{', '.join(map(str, self.seeds))}; a seed determines contexts, noise, the choice of real faces and "
                "training, and is the same in all rows; given networks are the same under all seeds"
            ),
            "figures": (
                "mean +- standard error over seeds; a change is the mean of the differences, seed by seed, to the row "
                "it builds on; the errors do not include the choice of the benchmark's pairs; evaluations are those "
                "of one seed, with all work that rows share"
            ),
        }

    def _write(self) -> None:
        """Write table.json, table.csv, table.md and times.json where they have changed."""
        table = self.table()
        update_json(self.folder / "table.json", self.to_json(table))
        update_text(self.folder / "table.csv", table.to_csv())
        update_text(self.folder / "table.md", table.to_markdown())
        update_json(self.folder / "times.json", {"minutes": table.times()})

    def _check(self) -> None:
        """Make all chains and check every input of the selected ones, before the first one runs.

        Raises:
            UserError: Naming every problem of the selected rows.
        """
        problems: dict[str, list[str]] = {}
        selected = {row.name for row in self.selected}
        for row in self.rows:
            for seed in self.seeds:
                try:
                    chain = self._found[row.name, seed] = self.chains.chain(row, seed)
                    if row.name in selected and seed == self.seeds[0] and not chain.is_finished:
                        self._cost(chain)
                except UserError as error:
                    names = problems.setdefault(str(error), []) if row.name in selected else []
                    names += [row.name] if row.name not in names else []
        if problems:
            lines = [f"row{'s' * (len(names) > 1)} {', '.join(names)}: {text}" for text, names in problems.items()]
            raise UserError.of("; ".join(lines))


def _num_gflops(backbone: PluginConfig) -> float:
    """Return the operations of one forward pass in units of 10^9; a multiply-add counts as two."""
    def pass_one_face(network: torch.nn.Module) -> torch.Tensor:
        return network(torch.zeros(1, 3, network.input_size, network.input_size))

    return flops("backbone", backbone.model_dump(), pass_one_face) / 1e9
