"""BenchmarkTable: verification results of a recognizer, one row per benchmark.

On disk: `table.json` (fractions and distances in full precision), and the same in percent as `table.csv` and
`table.md`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from facesyn_cli.artifacts.atomic_files import read_json, write_json, write_text
from facesyn_cli.artifacts.text_tables import NOT_AVAILABLE, Column, Table
from facesyn_cli.untrusted.parsing import validated

TABLE_JSON = "table.json"


class BenchmarkRow(BaseModel):
    """The results of one benchmark; rates are fractions in [0, 1], None where undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    benchmark: str                               # its name
    pairs: int = 0                               # number of pairs
    genuine: int = 0                             # number of pairs of the same person
    folds: int = 0                               # folds of the accuracy
    accuracy: float | None = None                # mean over the folds
    accuracy_std: float | None = None            # standard deviation over the folds (population)
    threshold: float | None = None               # mean over the folds of the squared distance applied
    threshold_cosine: float | None = None        # the same as a cosine
    tar: dict[str, float | None] = {}            # FAR, for example "1e-03" -> TAR over all pairs
    auc: float | None = None                     # area under the ROC curve
    eer: float | None = None                     # equal error rate
    rank: dict[str, float] = {}                  # k, for example "5" -> identification rate at rank k
    identities: int = 0                          # people whose pairs are all compared; 0: the pairs are a list
    gallery: int = 0                             # gallery images behind `rank`, where they are counted
    probes: int = 0                              # probes behind `rank`, where they are counted
    interval: dict[str, tuple[float, float]] = {}  # figure, for example "eer", "tar 1e-03", "rank 1" -> its 95 %
                                                 # interval, by a bootstrap over identities
    difference: dict[str, tuple[float, float, float]] = {}  # figure -> by how much it is above that of the recognizer
                                                 # compared with, and the 95 % interval, paired by identity
    group: str | None = None                     # benchmark that this row is one group of
    problem: str | None = None                   # reason for missing results, or None


class BenchmarkTable(BaseModel):
    """All rows of one recognizer."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str                                # name of its architecture
    weights: str                                 # digest of its weights
    flip: bool                                   # embeddings with the flip test
    rows: list[BenchmarkRow]

    @property
    def average_accuracy(self) -> float | None:
        """Mean accuracy over the benchmarks, as in published tables; the groups of a benchmark count as one.

        None if a row has a problem or no row has an accuracy.
        """
        if any(row.problem for row in self.rows):
            return None
        values = [row.accuracy for row in self.rows if row.accuracy is not None and row.group is None]
        values += [mean for mean, _ in self.groups().values() if mean is not None]
        return sum(values) / len(values) if values else None

    def groups(self) -> dict[str, tuple[float | None, float | None]]:
        """Return mean and standard deviation (ddof 1) of the accuracy over the groups of each grouped benchmark.

        Both are None if a group has a problem; the deviation is None for a single group.
        """
        found: dict[str, list[float | None]] = {}
        for row in self.rows:
            if row.group is not None:
                found.setdefault(row.group, []).append(row.accuracy)
        figures: dict[str, tuple[float | None, float | None]] = {}
        for name, accuracies in found.items():
            values = [value for value in accuracies if value is not None]
            is_whole = len(values) == len(accuracies)
            deviation = statistics.stdev(values) if is_whole and len(values) > 1 else None
            figures[name] = (statistics.fmean(values) if is_whole else None, deviation)
        return figures

    def to_json(self) -> dict:
        """Return the table as JSON values, with the average and the statistics over groups."""
        groups = {name: {"accuracy": mean, "accuracy_std": std} for name, (mean, std) in self.groups().items()}
        return {**self.model_dump(), "average_accuracy": self.average_accuracy, "groups": groups}

    def write(self, folder: Path) -> None:
        """Write the three files into a folder."""
        write_json(folder / TABLE_JSON, self.to_json())
        write_text(folder / "table.csv", self.to_csv())
        write_text(folder / "table.md", self.to_markdown())

    @staticmethod
    def read(folder: Path) -> BenchmarkTable:
        """Read a table back.

        Raises:
            UserError: There is no table, or it is damaged.
        """
        value = read_json(folder / TABLE_JSON)
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key not in ("average_accuracy", "groups")}  # derived
        return validated(BenchmarkTable, value, folder / TABLE_JSON, "a benchmark table")

    def to_csv(self) -> str:
        """Return the table as comma-separated values with a header line."""
        return self.to_table().to_csv()

    def to_markdown(self) -> str:
        """Return the table in Markdown, numbers right-aligned."""
        return self.to_table().to_markdown()

    def to_table(self) -> Table:
        """Return the table as text cells, rates in percent; what a narrow terminal shows comes first.

        Of the TAR, that at the strictest FAR with a value is shown first.
        """
        rates = sorted({rate for row in self.rows for rate in row.tar}, key=float)
        known = [rate for rate in rates if any(row.tar.get(rate) is not None for row in self.rows)]
        ranks = list(dict.fromkeys(k for row in self.rows for k in row.rank))
        intervals = _named(dict.fromkeys(key for row in self.rows for key in row.interval))
        changes = _named(dict.fromkeys(key for row in self.rows for key in row.difference))
        figures: list[tuple[Column, Callable[[BenchmarkRow], str]]] = [
            (Column("accuracy %"), lambda row: _percent(row.accuracy)),
            (Column("std %"), lambda row: _percent(row.accuracy_std)),
            (Column("EER %"), lambda row: _percent(row.eer)),
            (Column("AUC %"), lambda row: _percent(row.auc)),
            *((Column(f"TAR@{rate} %", rank=0 if rate in known[:1] else 2), _share("tar", rate)) for rate in rates),
            *((Column(f"rank-{k} %", rank=1), _share("rank", k)) for k in ranks),
            *((Column(f"{title} 95 %", is_text=True, rank=6), _interval(key)) for title, key in intervals),
            *((Column(f"{title} change", is_text=True, rank=1), _change(key)) for title, key in changes),
            *((Column(name, rank=4), _count(name)) for name in ("identities", "gallery", "probes")
              if any(getattr(row, name) for row in self.rows)),
            (Column("pairs", rank=3), lambda row: str(row.pairs or NOT_AVAILABLE)),
            (Column("folds", rank=4), lambda row: str(row.folds or NOT_AVAILABLE)),
            (Column("distance", rank=5), lambda row: _number(row.threshold)),
            (Column("cosine", rank=5), lambda row: _number(row.threshold_cosine)),
            (Column("note", is_text=True), lambda row: row.problem or ""),
        ]
        rows = [[row.benchmark, *(cell(row) for _, cell in figures)] for row in self.rows]
        rest = [""] * (len(figures) - 2)
        rows += [[f"{name} (over groups)", _percent(mean), _percent(std), *rest]
                 for name, (mean, std) in self.groups().items()]
        if len(self.rows) > 1:
            rows.append(["average", _percent(self.average_accuracy), "", *rest])
        return Table([Column("benchmark", is_text=True), *(column for column, _ in figures)], rows)


def _share(figures: str, key: str) -> Callable[[BenchmarkRow], str]:
    return lambda row: _percent(getattr(row, figures).get(key))


def _count(name: str) -> Callable[[BenchmarkRow], str]:
    return lambda row: str(getattr(row, name) or NOT_AVAILABLE)


def _named(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return the title of each key of `interval` or `difference`, and the key."""
    titles = {"eer": "EER", "auc": "AUC"}
    return [(titles.get(key, key.replace("tar ", "TAR@").replace("rank ", "rank-")), key) for key in keys]


def _interval(key: str) -> Callable[[BenchmarkRow], str]:
    def cell(row: BenchmarkRow) -> str:
        return " to ".join(map(_percent, row.interval[key])) if key in row.interval else NOT_AVAILABLE

    return cell


def _change(key: str) -> Callable[[BenchmarkRow], str]:
    def cell(row: BenchmarkRow) -> str:
        if key not in row.difference:
            return NOT_AVAILABLE
        value, low, high = (f"{100 * number:+.2f}" for number in row.difference[key])
        return f"{value} ({low} to {high})"

    return cell


def _percent(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.3f}"
