"""Rows, differences and tables of an ablation, against closed forms."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from facesyn_cli.artifacts.text_tables import to_text
from facesyn_cli.evaluation.ablation import FIGURES, AblationRow, AblationTable, Difference, student_quantile


def figures(accuracy: float | None, **more: float) -> dict[str, float | None]:
    found = {"auc": 0.8, "eer": 0.25, "images": 800, "identities": 80, "evaluations": 1000}
    return {"accuracy": accuracy, **found, **more}


def table(*rows: AblationRow) -> AblationTable:
    return AblationTable({"benchmark": "lfw"}, list(rows))


PLAIN = AblationRow(
    "plain", "plain", None, [0, 1, 2], {0: figures(0.70), 1: figures(0.72), 2: figures(0.74)}, {}, {0: 1, 1: 2, 2: 3}
)
HELPED = AblationRow("helped", "+ help", "plain", [0, 1, 2], {0: figures(0.73), 1: figures(0.75), 2: figures(0.78)})


@pytest.mark.parametrize(
    ("degrees", "expected"),  # tan(0.475 pi); the root of a quadratic; tables
    [(1, math.tan(0.475 * math.pi)), (2, 0.95 * math.sqrt(2 / (1 - 0.95**2))), (3, 3.18245), (4, 2.77645),
     (9, 2.26216), (10, 2.22814), (30, 2.04227)],
)
def test_points_of_students_distribution(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-5)
    assert student_quantile(0.5, degrees) == pytest.approx(0, abs=1e-9)


def test_points_of_students_distribution_are_refused_where_there_are_none() -> None:
    for share, degrees in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError):
            student_quantile(share, degrees)


def test_mean_and_standard_error_over_seeds() -> None:
    mean, error = PLAIN.mean_and_error("accuracy")
    assert mean == pytest.approx(0.72) and error == pytest.approx(0.02 / math.sqrt(3))
    assert AblationRow("a", "a", None, [0], {0: figures(0.7)}).mean_and_error("accuracy") == (0.7, None)
    undefined = AblationRow("a", "a", None, [0, 1], {0: figures(0.7), 1: figures(None)})
    assert undefined.mean_and_error("accuracy") == (None, None)
    assert undefined.mean_and_error("images") == (800, 0)


def test_a_difference_is_taken_seed_by_seed() -> None:
    difference = table(PLAIN, HELPED).difference(HELPED)
    assert difference.values == pytest.approx({0: 0.03, 1: 0.03, 2: 0.04})
    assert difference.mean == pytest.approx(0.1 / 3)
    error = math.sqrt((2 * (1 / 300) ** 2 + (2 / 300) ** 2) / 2) / math.sqrt(3)  # far smaller than unpaired
    assert difference.error == pytest.approx(error)
    assert difference.interval == pytest.approx((0.1 / 3 - 4.302653 * error, 0.1 / 3 + 4.302653 * error))
    assert difference.verdict == "better"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((0.01, 0.01, 0.011), "better"), ((-0.01, -0.01, -0.011), "worse"), ((0.02, -0.01, 0.03), "not shown"),
     ((0.05,), "one seed"), ((0.0, 0.0), "not shown")],
)
def test_what_an_interval_says(values: tuple[float, ...], verdict: str) -> None:
    assert Difference("plain", dict(enumerate(values))).verdict == verdict


@pytest.mark.parametrize(
    ("values", "is_decided"),
    [((0.05, 0.051, 0.05), True), ((-0.05, -0.051, -0.05), True), ((0.02, -0.01, 0.03), False), ((0.05,), False),
     ((0.0, 0.0), True), ((0.001, -0.001, 0.0), True), ((0.02, -0.02, 0.0), False)],
)
def test_a_difference_is_decided_where_it_is_shown_or_small(values: tuple[float, ...], is_decided: bool) -> None:
    assert Difference("plain", dict(enumerate(values))).is_decided(0.01) is is_decided


def test_every_look_at_a_difference_costs_confidence() -> None:
    values = {0: 0.01, 1: 0.02, 2: 0.03}
    once, often = (replace(table(PLAIN, HELPED), looks=looks).difference(HELPED) for looks in (1, 4))
    assert once.confidence == 0.95 and often.confidence == pytest.approx(0.9875)
    low, high = Difference("plain", values, confidence=often.confidence).interval
    half = student_quantile(1 - 0.05 / 8, 2) * 0.01 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.02 - half, 0.02 + half))
    assert often.detectable > once.detectable


def test_tables_that_stop_early_are_seldom_wrong() -> None:
    """Without a difference, at most 5 of 100 tables of five seeds show one at any of the four looks."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        values = dict(enumerate(random.standard_normal(5)))
        looks = [Difference("plain", {k: values[k] for k in range(n)}, confidence=1 - 0.05 / 4) for n in range(2, 6)]
        wrong += any(look.verdict in ("better", "worse") for look in looks)
    assert 10 <= wrong <= 60


def test_more_seeds_are_needed_of_undecided_rows_and_of_those_they_build_on() -> None:
    def row(name: str, base: str | None, *accuracies: float) -> AblationRow:
        return AblationRow(name, name, base, [0, 1, 2], {k: figures(value) for k, value in enumerate(accuracies)})

    rows = [row("real", None, 0.9), row("plain", None, 0.70, 0.72), row("same", "plain", 0.70, 0.72),
            row("unclear", "plain", 0.75, 0.68), row("on top", "same", 0.80, 0.82)]
    everything = {one.name for one in rows}
    assert table(*rows).needed(everything) == {"real", "plain", "unclear"}
    assert table(*rows).needed({"plain", "same"}) == set()
    assert table(*rows[:2], row("same", "plain", 0.70)).needed({"plain", "same"}) == {"plain", "same"}, "one seed"


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    half = AblationRow("half", "half", "plain", [0, 1, 2], {1: figures(0.70), 5: figures(0.99)})
    assert table(PLAIN, half).difference(half).values == pytest.approx({1: -0.02})
    alone = AblationRow("alone", "alone", "plain", [0], {7: figures(0.7)})
    assert table(PLAIN, alone).difference(alone) is None
    assert table(PLAIN, HELPED).difference(PLAIN) is None


def test_states() -> None:
    assert PLAIN.status == "finished"
    assert AblationRow("a", "a", None, [0, 1], {0: figures(0.7)}).status == "1 of 2 seeds"
    assert AblationRow("a", "a", None, [0, 1]).status == "not run"
    failed = AblationRow("a", "a", None, [0, 1], {0: figures(0.7)}, {1: "no faces"})
    assert failed.status == "failed: seed 1: no faces"


def test_all_forms_of_a_table_say_the_same() -> None:
    idle = AblationRow("idle", "a | b", "helped", [0, 1, 2])
    failed = AblationRow("failed", "failed", None, [0], {}, {0: "no | faces"})
    found = table(PLAIN, HELPED, idle, failed)
    value = json.loads(json.dumps(found.to_json()))
    lines = list(csv.DictReader(found.to_csv().splitlines()))
    assert [row["name"] for row in value["rows"]] == [line["row"] for line in lines]
    for row, line in zip(value["rows"], lines, strict=True):
        for name in FIGURES:
            for suffix, key in (("", "mean"), ("_error", "error")):
                assert (float(line[name + suffix]) if line[name + suffix] else None) == row[name][key]
        assert (float(line["difference"]) if line["difference"] else None) == (row["difference"] or {}).get("mean")
        assert line["verdict"] == (row["difference"] or {"verdict": ""})["verdict"]
        assert line["status"] == row["status"]
    markdown = found.to_markdown().splitlines()
    cells = "75.33 +- 1.45 | 80.00 +- 0.00 | 25.00 +- 0.00 | +3.33 +- 0.33"
    assert f"| + help | 800 | 80 | {cells} | 1,000 | finished |" in markdown
    assert "| a \\| b |  |  |  |  |  |  |  | not run |" in markdown
    assert "- benchmark: lfw" in markdown
    reading = ("+ help, against plain: +3.33 +- 0.33 points (95 % interval +1.90 to +4.77): better; 3 seeds show a "
               "difference of 1.79 points in 80 % of tables, 1.00 points need 5 seeds")
    text = to_text(found.blocks())
    assert f"- {reading}" in markdown and text.splitlines()[-1] == reading
    assert "failed: seed 0: no | faces" in text
    assert found.times() == {"plain": {"0": 1, "1": 2, "2": 3}, "helped": {}, "idle": {}, "failed": {}}
    assert "minutes" in text and "2.0" in text.splitlines()[1]
    assert not any("minutes" in text for text in (found.to_csv(), *markdown, json.dumps(value)))


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_the_detectable_difference_is_shown_in_80_percent_of_tables(seeds: int) -> None:
    """Tables of a normal difference whose spread is known: at the stated mean four of five call it better."""
    generator = np.random.default_rng(0)
    spread = 0.02
    unit = Difference("plain", {seed: value for seed, value in enumerate(_of_spread(seeds, spread))})
    assert unit.detectable is not None
    draws = generator.normal(unit.detectable, spread, (4000, seeds))
    half = student_quantile(0.975, seeds - 1) * draws.std(axis=1, ddof=1) / math.sqrt(seeds)
    assert np.mean(draws.mean(axis=1) - half > 0) == pytest.approx(0.8, abs=0.06)


def test_how_many_seeds_a_difference_needs() -> None:
    found = Difference("plain", dict(enumerate(_of_spread(4, 0.02))))
    needed = found.seeds_for(0.01)
    assert needed is not None and 30 < needed < 36  # ((1.96 + 0.84) 2)^2 = 31.4 with the normal distribution
    for count, is_enough in ((needed, True), (needed - 1, False)):
        shown = Difference("plain", dict(enumerate(_of_spread(count, 0.02)))).detectable
        assert (shown <= 0.01) == is_enough
    assert found.seeds_for(1e-6) is None and found.seeds_for(0.5) == 2
    assert Difference("plain", {0: 0.1}).seeds_for(0.01) is None and Difference("plain", {0: 0.1}).detectable is None


def test_a_table_without_accuracies_compares_auc_and_less_error_is_better() -> None:
    rows = [AblationRow(name, name, base, [0, 1], {seed: figures(None, auc=auc, eer=eer) for seed in (0, 1)})
            for name, base, auc, eer in (("a", None, 0.8, 0.3), ("b", "a", 0.9, 0.2))]
    by_auc = AblationTable({}, rows)
    assert by_auc.compared == "auc" and by_auc.difference(rows[1]).values == pytest.approx({0: 0.1, 1: 0.1})
    assert "change in AUC, points" in by_auc.to_markdown() and by_auc.to_json()["compared"] == "auc"
    by_eer = AblationTable({}, rows, "eer")
    assert by_eer.difference(rows[1]).mean == pytest.approx(-0.1) and by_eer.difference(rows[1]).verdict == "better"
    assert table(PLAIN).compared == "accuracy" == AblationTable({}, []).compared


def _of_spread(count: int, spread: float) -> np.ndarray:
    """Values of a given standard deviation."""
    values = np.arange(count) - (count - 1) / 2
    return values * spread / values.std(ddof=1)
