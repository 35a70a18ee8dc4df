"""BenchmarkTable: verification results of a recognizer, one row per benchmark.

On disk: `table.json` (fractions and distances in full precision), and the same in percent as `table.csv` and
`table.md`.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from facesyn_cli.artifacts import text_tables
from facesyn_cli.artifacts.atomic_files import read_json, write_json, write_text
from facesyn_cli.untrusted.parsing import validated

TABLE_JSON = "table.json"
NOT_AVAILABLE = "n/a"


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
        return text_tables.to_csv(self._cells())

    def to_markdown(self) -> str:
        """Return the table in Markdown, numbers right-aligned."""
        cells = self._cells()
        return text_tables.to_markdown(cells, (0, len(cells[0]) - 1))

    def to_text(self) -> str:
        """Return the table for a terminal, in aligned columns."""
        cells = self._cells()
        last = len(cells[0]) - 1
        if not any(line[last] for line in cells[1:]):
            cells = [line[:last] for line in cells]
        return text_tables.aligned(cells, (0, last))

    def _cells(self) -> list[list[str]]:
        """Return the header and all rows as text; rates in percent."""
        rates = list(dict.fromkeys(rate for row in self.rows for rate in row.tar))
        header = ["benchmark", "pairs", "folds", "accuracy %", "std %", "distance", "cosine"]
        ranks = list(dict.fromkeys(k for row in self.rows for k in row.rank))
        header += [f"TAR@{rate} %" for rate in rates] + ["AUC %", "EER %"] + [f"rank-{k} %" for k in ranks] + ["note"]
        cells = [header]
        for row in self.rows:
            cells.append([
                row.benchmark, str(row.pairs or NOT_AVAILABLE), str(row.folds or NOT_AVAILABLE),
                _percent(row.accuracy), _percent(row.accuracy_std),
                _number(row.threshold), _number(row.threshold_cosine),
                *(_percent(row.tar.get(rate)) for rate in rates),
                _percent(row.auc), _percent(row.eer), *(_percent(row.rank.get(k)) for k in ranks), row.problem or "",
            ])
        for name, (mean, std) in self.groups().items():
            cells.append([f"{name} (over groups)", "", "", _percent(mean), _percent(std)] + [""] * (len(header) - 5))
        if len(self.rows) > 1:
            cells.append(["average", "", "", _percent(self.average_accuracy)] + [""] * (len(header) - 4))
        return cells


def _percent(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.3f}"
