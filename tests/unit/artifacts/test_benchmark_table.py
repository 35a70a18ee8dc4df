"""The benchmark table: what is written comes back, and people see percent and `n/a`."""

from __future__ import annotations

import csv

import pytest

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.errors import UserError

LFW = BenchmarkRow(
    benchmark="lfw", pairs=6000, genuine=3000, folds=10, accuracy=0.99333, accuracy_std=0.004, threshold=1.44,
    threshold_cosine=0.28, tar={"1e-02": 0.9951, "1e-03": None}, auc=0.9987, eer=0.0071,
)
OTHER = BenchmarkRow(
    benchmark="cfp-fp", pairs=7000, genuine=3500, folds=10, accuracy=0.9, accuracy_std=0.01, threshold=1.5,
    threshold_cosine=0.25, tar={"1e-02": 0.8, "1e-03": 0.7}, auc=0.95, eer=0.1,
)
BROKEN = BenchmarkRow(benchmark="calfw", problem="calfw: cannot | read it")


def table(*rows: BenchmarkRow) -> BenchmarkTable:
    return BenchmarkTable(backbone="ir-50", weights="sha256:0", flip=True, rows=list(rows))


def test_written_tables_come_back(tmp_path):
    written = table(LFW, OTHER)
    written.write(tmp_path)
    assert BenchmarkTable.read(tmp_path) == written
    assert written.to_json()["average_accuracy"] == pytest.approx((0.99333 + 0.9) / 2)


def test_csv_holds_percent(tmp_path):
    table(LFW, OTHER).write(tmp_path)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["benchmark"] for row in rows] == ["lfw", "cfp-fp", "average"]
    assert (rows[0]["accuracy %"], rows[0]["TAR@1e-02 %"], rows[0]["TAR@1e-03 %"]) == ("99.33", "99.51", "n/a")
    assert (rows[0]["distance"], rows[0]["cosine"], rows[2]["accuracy %"]) == ("1.440", "0.280", "94.67")


def test_text_and_markdown_are_aligned():
    lines = table(LFW, OTHER).to_table().to_text().splitlines()
    assert len(lines) == 4 and lines[0].split()[:2] == ["benchmark", "accuracy"]
    assert lines[1].index("6000") == lines[2].index("7000")
    markdown = table(LFW).to_markdown().splitlines()
    assert len(markdown) == 3, "one benchmark has no average"
    assert len({line.count("|") for line in markdown}) == 1


def test_a_broken_benchmark_says_why_and_spoils_the_average():
    broken = table(LFW, BROKEN)
    assert broken.average_accuracy is None
    text = broken.to_table().to_text()
    assert text.splitlines()[2].split()[:4] == ["calfw", "n/a", "n/a", "n/a"]
    assert "cannot | read it" in text
    assert r"cannot \| read it" in broken.to_markdown()


def test_groups_have_mean_and_sample_deviation(tmp_path):
    """RFW: mean and standard deviation with ddof 1; in the average the groups are one benchmark."""
    rows = [BenchmarkRow(benchmark=f"rfw-{k}", pairs=9, folds=3, accuracy=a, accuracy_std=0.1, group="rfw")
            for k, a in enumerate((0.8, 0.9, 0.7, 0.6))]
    made = table(LFW, *rows)
    mean, std = made.groups()["rfw"]
    assert (mean, std) == (pytest.approx(0.75), pytest.approx((0.05 / 3) ** 0.5))
    assert made.average_accuracy == pytest.approx((0.99333 + 0.75) / 2)
    line = next(line for line in made.to_table().to_text().splitlines() if line.startswith("rfw (over groups)"))
    assert line.split()[-2:] == ["75.00", "12.91"]
    made.write(tmp_path)
    assert BenchmarkTable.read(tmp_path) == made
    broken = table(LFW, *rows[:3], BenchmarkRow(benchmark="rfw-3", group="rfw", problem="no"))
    assert broken.groups()["rfw"] == (None, None) and broken.average_accuracy is None
    assert table(rows[0]).groups()["rfw"] == (0.8, None)


def test_benchmarks_without_an_accuracy_do_not_spoil_the_average():
    ranked = BenchmarkRow(benchmark="tinyface", pairs=5, rank={"1": 0.5, "5": 0.75})
    made = table(LFW, ranked)
    assert made.average_accuracy == LFW.accuracy and table(ranked).average_accuracy is None
    cells = made.to_table()
    found = [dict(zip((column.title for column in cells.columns), row, strict=True)) for row in cells.rows]
    assert (found[1]["rank-1 %"], found[1]["rank-5 %"]) == ("50.00", "75.00")
    assert (found[0]["rank-1 %"], found[0]["rank-5 %"]) == ("n/a", "n/a")


def test_the_strictest_tar_with_a_value_is_essential():
    """LFW has a TAR at 1e-2 only: that column is never left out, the stricter one without a value may be."""
    ranks = {column.title: column.rank for column in table(LFW).to_table().columns}
    assert ranks["TAR@1e-02 %"] == 0 < ranks["TAR@1e-03 %"]
    assert [title for title, rank in ranks.items() if rank == 0] == [
        "benchmark", "accuracy %", "std %", "EER %", "AUC %", "TAR@1e-02 %", "note"
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"backbone": 1, "weights": "", "flip": true, "rows": []}'])
def test_damaged_tables_are_refused(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(UserError, match=r"table\.json"):
        BenchmarkTable.read(tmp_path)
