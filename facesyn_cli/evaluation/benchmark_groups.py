"""How far apart do groups of people lie in a benchmark? Accuracy of each group of RFW, mean, deviation and spread.

RFW (Wang et al. 2019, arXiv:1812.00194) has one list of pairs for each of four groups; published tables give the
accuracy of each, their mean and their standard deviation (ddof 1).
"""

from __future__ import annotations

import math

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.evaluation.figures import Figure, Section

_FOLDS = "spread over the folds"


def benchmark_groups(table: BenchmarkTable) -> Section:
    """Return the figures of every benchmark that has groups; none where the table has no such benchmark."""
    section = Section()
    for name, (mean, deviation) in table.groups().items():
        rows = [row for row in table.rows if row.group == name]
        accuracies = [_accuracy(row, name) for row in rows]
        section.figures += accuracies
        section.figures += [
            Figure("fairness.benchmark_eer", row.eer, row.pairs, "pairs", "share", group=_label(row, name))
            for row in rows
        ]
        known = [figure for figure in accuracies if figure.value is not None]
        if mean is None or len(known) < 2:
            section.notes.append(f"{name}: figures over groups need every group of it.")
            continue
        low, high = (choose(known, key=lambda figure: figure.value) for choose in (min, max))
        errors = [figure.error for figure in (low, high)]
        count = len(rows)
        section.figures += [
            Figure("fairness.benchmark_mean", mean, count, "groups", "share", group=name),
            Figure("fairness.benchmark_std", deviation, count, "groups", "share", group=name),
            Figure("fairness.benchmark_accuracy_spread", high.value - low.value, count, "groups", "share",
                   error=None if None in errors else math.hypot(*errors), error_from=_FOLDS, group=name),
        ]
        rates = [row.eer for row in rows if row.eer is not None]
        if len(rates) == count:
            section.figures.append(Figure(
                "fairness.benchmark_eer_spread", max(rates) - min(rates), count, "groups", "share", group=name
            ))
    return section


def _accuracy(row: BenchmarkRow, name: str) -> Figure:
    error = row.accuracy_std / math.sqrt(row.folds) if row.accuracy_std is not None and row.folds else None
    return Figure("fairness.benchmark_accuracy", row.accuracy, row.pairs, "pairs", "share", error=error,
                  error_from=_FOLDS, group=_label(row, name))


def _label(row: BenchmarkRow, name: str) -> str:
    return f"{name}={row.benchmark.removeprefix(f'{name}-')}"
