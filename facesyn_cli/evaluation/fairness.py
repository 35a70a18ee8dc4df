"""Metrics by group of people: of a set with a table of attributes, and of a benchmark with groups.

The scores of a group are those of pairs inside it, as in RFW (arXiv:1812.00194). Beside the error rates of each group,
FMR and FNMR are given at one threshold for all groups: that at which 0.1 % of all impostor pairs of the set match. Of
RFW, published tables give the accuracy of each group, their mean and their standard deviation (ddof 1).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.names import nfc
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import IDIFF, ISO, RFW, Metric, declare
from facesyn_cli.evaluation.score_counts import NUM_BINS, STEP, ScoreCounts, count_scores, error_rates
from facesyn_cli.evaluation.section import BOOTSTRAP, SPREAD, Figure, Section
from facesyn_cli.untrusted.input_files import read_lines

COMMON_RATE = 1e-3
_MIN_IDENTITIES = 2
KEY_COLUMNS = ("identity", "key")

_FOLDS = "spread over the folds"

declare(
    Metric("fairness.images", "Images of a group", "How many images belong to the group.", unit="count",
        by_group="table"),
    Metric("fairness.identities", "Identities of a group", "How many identities have images in the group.",
        unit="count", by_group="table"),
    Metric("fairness.fmr", "False match rate", "Share of different-person pairs of a group accepted at the threshold "
        "common to all groups.", formula="FMR_group(t), t common to all groups", source=ISO, better="lower",
        unit="share", by_group="chart"),
    Metric("fairness.fnmr", "False non-match rate", "Share of same-person pairs of a group rejected at the threshold "
        "common to all groups.", formula="FNMR_group(t), t common to all groups", source=ISO, better="lower",
        unit="share", by_group="chart"),
    Metric("fairness.benchmark_accuracy", "Accuracy", "Share of pairs of one group that the recognizer decides "
        "rightly, mean over the folds; the error is the spread over the folds.",
        formula="mean over folds of the accuracy at the best threshold of the others", source=RFW, better="higher",
        unit="share"),
    Metric("fairness.benchmark_eer", "Equal error rate", "Share of wrong decisions on pairs of one group, where both "
        "kinds of error are equal.", formula="(FMR(t) + FNMR(t)) / 2 at the t with the least |FMR(t) - FNMR(t)|",
        source=IDIFF, better="lower", unit="share"),
    Metric("fairness.benchmark_mean", "Mean over groups", "Mean accuracy of the groups.", formula="mean over groups",
        source=RFW, better="higher", unit="share"),
    Metric("fairness.benchmark_std", "Standard deviation over groups",
        "How much the accuracy differs between the groups.", formula="sqrt(sum (accuracy - mean)^2 / (groups - 1))",
        source=RFW, better="lower", unit="share"),
)

Groups = dict[str, dict[str, str]]  # attribute -> identity or image key -> value


def read_groups(path: Path) -> tuple[str, Groups]:
    """Read a table of attributes: a column `identity` (or `key`), then one column an attribute.

    Returns:
        The first column, `identity` or `key`; and attribute -> name -> value. Empty cells are left out.

    Raises:
        UserError: It cannot be read, has no such columns, or has two values for one name.
    """
    try:
        rows = list(csv.reader(read_lines(path, "a table of attributes (.csv)")))
    except csv.Error as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows or rows[0][0].strip() not in KEY_COLUMNS or len(rows[0]) < 2:
        raise UserError(f"{path}: a first line `identity,ATTRIBUTE,...` (or `key,ATTRIBUTE,...`) was expected, "
                        f"found {','.join(rows[0])[:80] if rows else 'an empty file'}")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{path}: two columns have the same name, or one has none: {','.join(names)}")
    groups: Groups = {name: {} for name in names[1:]}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise UserError(f"{path}, row {number}: {len(row)} values, {len(names)} were expected")
        for name, cell in zip(names[1:], row[1:], strict=True):
            value = cell.strip()
            if value and groups[name].setdefault(nfc(row[0].strip()), value) != value:
                raise UserError(f"{path}, row {number}: {row[0]} has {name} {value} here and another value before")
    return names[0], groups


def group_section(
    rows: LabeledEmbeddings, kind: str, groups: Groups, counts: ScoreCounts, max_pairs: int, seed: int,
    more: Callable[[LabeledEmbeddings, ScoreCounts], list[Figure]],
) -> Section:
    """Return every figure by group, and its range over the groups.

    Args:
        rows: The set.
        kind: Key of `groups`, `identity` or `key`.
        groups: Attribute -> name -> value.
        counts: Scores of the whole set.
        max_pairs: See `count_scores`.
        seed: Seed of samples.
        more: Further figures of a part of the set, from its rows and its scores.
    """
    section = Section()
    threshold = counts.threshold_at(COMMON_RATE)
    if threshold is None:
        section.notes.append("The set has too few impostor pairs for a common threshold at FMR 0.1 %.")
    for attribute, values in groups.items():
        member = np.array([
            values.get(rows.identities[owner] if kind == "identity" else key, "")
            for key, owner in zip(rows.keys, rows.owner, strict=True)
        ])
        if not (member != "").any():
            example = rows.identities[0] if kind == "identity" else rows.keys[0]
            raise UserError(f"groups: no {kind} of the set has a value of {attribute}; names such as {example!r} were "
                            "expected")
        unknown = int((member == "").sum())
        if unknown:
            section.notes.append(f"{unknown:,} of {len(member):,} images have no value of {attribute}.")
        for value in sorted(set(member) - {""}):
            part = rows.part(member == value)
            label = f"{attribute}={value}"
            if len(part.identities) < _MIN_IDENTITIES:
                section.notes.append(f"{label}: fewer than {_MIN_IDENTITIES} identities, no figures.")
                continue
            own = count_scores(part, max_pairs, seed)
            figures = [Figure("fairness.images", len(part.keys), len(part.keys), "images"),
                       Figure("fairness.identities", len(part.identities), len(part.identities), "identities")]
            figures += _at_common(own, threshold) + [replace(one, id=f"fairness.{one.id}") for one in more(part, own)]
            section.figures += [replace(figure, group=label) for figure in figures]
        section.figures += _spreads(section.figures, attribute)
    return section


def benchmark_groups(table: BenchmarkTable) -> Section:
    """Return the figures of every benchmark that has groups; none where the table has no such benchmark."""
    section = Section()
    for name, (mean, deviation) in table.groups().items():
        rows = [row for row in table.rows if row.group == name]
        accuracies = [_accuracy(row, name) for row in rows]
        rates = [Figure("fairness.benchmark_eer", row.eer, row.pairs, "pairs", group=_label(row, name)) for row in rows]
        section.figures += accuracies + rates
        known = [figure for figure in accuracies if figure.value is not None]
        if mean is None or len(known) < 2:
            section.notes.append(f"{name}: figures over groups need every group of it.")
            continue
        section.figures += [
            Figure("fairness.benchmark_mean", mean, len(rows), "groups", group=name),
            Figure("fairness.benchmark_std", deviation, len(rows), "groups", group=name),
            _spread(accuracies, "groups", name, _FOLDS),
        ]
        if all(rate.value is not None for rate in rates):
            section.figures.append(_spread(rates, "groups", name, _FOLDS))
    return section


def _accuracy(row: BenchmarkRow, name: str) -> Figure:
    error = row.accuracy_std / math.sqrt(row.folds) if row.accuracy_std is not None and row.folds else None
    return Figure("fairness.benchmark_accuracy", row.accuracy, row.pairs, "pairs", error=error,
                  error_from=_FOLDS, group=_label(row, name))


def _label(row: BenchmarkRow, name: str) -> str:
    return f"{name}={row.benchmark.removeprefix(f'{name}-')}"


def _at_common(counts: ScoreCounts, threshold: float | None) -> list[Figure]:
    """Return FMR and FNMR of a group at the threshold of the whole set."""
    if threshold is None or not counts.num_impostor or not counts.num_genuine:
        return []
    at = round((threshold + 1) / STEP)
    figures = []
    for place, (name, kind) in enumerate((("fmr", "impostor"), ("fnmr", "genuine"))):

        def figure(genuine: NDArray, impostor: NDArray, place: int = place) -> float:
            rate = error_rates(genuine, impostor)[place]
            return float(rate[round(at * (len(rate) - 2) / (NUM_BINS - 1))])   # the bootstrap has wider bins

        scores = {"genuine": counts.genuine, "impostor": counts.impostor}
        is_exact = {"genuine": counts.genuine_exact, "impostor": counts.impostor_exact}[kind]
        figures.append(Figure(
            f"fairness.{name}", figure(counts.genuine, counts.impostor), int(scores[kind].sum()), f"{kind} pairs",
            is_exact, counts.error_of(figure), BOOTSTRAP, threshold,
        ))
    return figures


def _spreads(figures: list[Figure], attribute: str) -> list[Figure]:
    """Return the largest minus the smallest value over the groups of an attribute, except of counts."""
    by_name: dict[str, list[Figure]] = {}
    for figure in figures:
        if (figure.group or "").startswith(f"{attribute}=") and figure.value is not None and figure.unit != "count":
            by_name.setdefault(figure.id, []).append(figure)
    return [_spread(found, f"groups of {attribute}", attribute, SPREAD) for found in by_name.values() if len(found) > 1]


def _spread(found: list[Figure], of: str, group: str, error_from: str) -> Figure:
    """Return the largest minus the smallest value of one figure over groups."""
    low, high = (choose(found, key=lambda figure: figure.value) for choose in (min, max))
    errors = [figure.error for figure in (low, high)]
    return Figure(
        f"{low.id}_spread", high.value - low.value, len(found), of, all(figure.exact for figure in found),
        None if None in errors else float(np.hypot(*errors)), error_from, group=group,
    )
