"""Groups of a benchmark: mean, deviation and spread by hand, and tables without them."""

from __future__ import annotations

import numpy as np
import pytest

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.evaluation.all_metrics import define
from facesyn_cli.evaluation.fairness import benchmark_groups

ACCURACIES = {"african": 0.80, "asian": 0.84, "caucasian": 0.90, "indian": 0.86}


def table(**missing: None) -> BenchmarkTable:
    rows = [BenchmarkRow(benchmark="lfw", pairs=6000, folds=10, accuracy=0.99, accuracy_std=0.01, eer=0.01)]
    for name, accuracy in ACCURACIES.items():
        rows.append(BenchmarkRow(
            benchmark=f"rfw-{name}", pairs=6000, folds=10, accuracy=missing.get(name, accuracy), accuracy_std=0.02,
            eer=1 - accuracy, group="rfw", problem="not there" if name in missing else None,
        ))
    return BenchmarkTable(backbone="ir-50", weights="sha256:1", flip=True, rows=rows)


def test_groups_by_hand():
    section = benchmark_groups(table())
    found = {(figure.id.removeprefix("fairness.benchmark_"), figure.group): figure for figure in section.figures}
    assert {group: f.value for (name, group), f in found.items() if name == "accuracy"} == {
        f"rfw={name}": value for name, value in ACCURACIES.items()}
    values = list(ACCURACIES.values())
    assert found["mean", "rfw"].value == pytest.approx(np.mean(values))
    assert found["std", "rfw"].value == pytest.approx(np.std(values, ddof=1))
    assert found["accuracy_spread", "rfw"].value == pytest.approx(0.10)
    assert found["accuracy_spread", "rfw"].error == pytest.approx(np.sqrt(2) * 0.02 / np.sqrt(10))
    assert found["eer_spread", "rfw"].value == pytest.approx(0.10)
    names = {figure.id for figure in section.figures}
    assert set(define(names)) == names and not section.notes


def test_a_group_that_is_not_there_has_no_spread():
    section = benchmark_groups(table(asian=None))
    assert "rfw: figures over groups need every group of it." in section.notes
    assert {figure.id for figure in section.figures} == {"fairness.benchmark_accuracy", "fairness.benchmark_eer"}


def test_a_table_without_groups_has_no_figures():
    plain = table().model_copy(update={"rows": table().rows[:1]})
    assert not benchmark_groups(plain).figures
