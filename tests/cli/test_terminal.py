"""Results in terminals of several widths, in a pipe, and in Markdown."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.text_tables import Column, Table
from facesyn_cli.bench.settings import SUBJECTS
from facesyn_cli.cli import terminal
from facesyn_cli.cli.stage_command import print_result
from facesyn_cli.evaluation.ablation import AblationRow, AblationTable
from facesyn_cli.evaluation.study_table import StudyRow, to_table
from facesyn_cli.stages import bench

WIDTHS = (40, 80, 140, None)
ROWS = [
    BenchmarkRow(
        benchmark=name, pairs=6000, genuine=3000, folds=10, accuracy=0.99, accuracy_std=0.01, threshold=1.44,
        threshold_cosine=0.28, tar={"1e-02": 0.98, "1e-03": 0.97, "1e-04": None}, auc=0.999, eer=0.02,
    ) for name in ("lfw", "cfp-fp", "agedb-30")
]
FIGURES = {"consistency": 0.8123, "eer": 0.05, "fdr": 7.5, "vendi_within": 2.5, "vendi": 35.0, "rms": 3.25,
           "frechet": 0.125}


def evaluation(*rows: BenchmarkRow) -> Table:
    return BenchmarkTable(backbone="ir-50", weights="sha256:0", flip=True, rows=list(rows)).to_table()


def study() -> Table:
    other = {name: 1.1 * value for name, value in FIGURES.items()}
    return to_table([StudyRow(name, 50, method, 50, [FIGURES, other], [12.5]) for name, method in
                     (("ddim", ""), ("unipc", "negfacediff"))], has_speeds=True)


def ablation() -> Table:
    figures = {seed: {"accuracy": 0.7 + seed / 100, "auc": 0.8, "images": 800, "identities": 80, "evaluations": 1000}
               for seed in range(3)}
    rows = [AblationRow("plain", "contexts on a sphere", None, [0, 1, 2], figures),
            AblationRow("copies", "with copies", "plain", [0, 1, 2], figures),
            AblationRow("bad", "none", None, [0, 1, 2], {}, {0: "no contexts are left " * 8})]
    table = AblationTable({}, rows).blocks()[0]
    assert isinstance(table, Table)
    return table


def speeds(subject: str) -> Table:
    rows = [{"name": name, "images": 64, "seconds": 1.25, "images/s": 51.2, "share of ceiling": 0.125,
             "peak memory MiB": 1024.5, "images/s of the steps": 60.0}
            for name in ("plain loop, fp32", "facesyn, fp32")]
    result = {"subject": subject, "machine": {"matrix rate": {}, "device": "", "clock": "", "precision that pays": ""},
              "network": {}, "runs": rows}
    table = bench.blocks(result)[1]
    assert isinstance(table, Table)
    return table


TABLES = {
    "eval": (evaluation(*ROWS), ("benchmark", "accuracy %", "std %", "EER %", "AUC %", "TAR@1e-03 %")),
    "eval, one benchmark": (evaluation(ROWS[0]), ("benchmark", "accuracy %", "std %", "EER %", "AUC %", "TAR@1e-03 %")),
    "study": (study(), ("scheduler", "steps", "method", "consistency", "EER", "images/s")),
    "ablate": (ablation(), ("training set", "accuracy %", "change, points", "state")),
    "bench": (speeds(SUBJECTS[0]), ("runs", "images/s")),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_essential_columns_are_there_at_any_width(name: str, width: int | None) -> None:
    table, essential = TABLES[name]
    text = terminal.render_table(table.columns, table.rows, width)
    shown, _, left_out = text.partition("not shown for lack of width: ")
    named = " ".join(left_out.split())
    for title in essential:
        assert title in shown, title
    for column in table.columns:
        cells = {row[table.columns.index(column)] for row in table.rows}
        assert column.title in shown or column.title in named or cells <= {"", "n/a"}, column.title
    if width is None:
        assert text == table.to_text() and not named
    else:
        assert max(map(cell_len, text.splitlines())) <= width


def test_the_least_important_columns_go_first() -> None:
    columns = [Column("name", is_text=True), Column("a", rank=1), Column("b", rank=2), Column("c", rank=2), Column("d")]
    rows = [["x", "1" * 10, "2" * 10, "3" * 10, "4" * 10], ["y", "1", "2", "3", "4"]]
    titles = {width: [title for title in "abcd" if title in terminal.render_table(columns, rows, width).splitlines()[0]
                      .replace("name", "")] for width in (52, 51, 39, 27, 15)}
    assert titles == {52: list("abcd"), 51: list("abd"), 39: list("ad"), 27: ["d"], 15: []}
    text = terminal.render_table(columns, rows, 39)
    assert text.endswith("not shown for lack of width: b, c")
    stacked = terminal.render_table(columns, rows, 15)
    assert stacked.split("\n\n")[1].splitlines() == ["name  y", "a     1", "b     2", "c     3", "d     4"]


def test_one_row_is_a_list_and_values_that_are_not_there_are_left_out() -> None:
    columns = [Column("name", is_text=True), Column("EER %"), Column("AUC %"), Column("note", is_text=True)]
    assert terminal.render_table(columns, [["lfw", "2.00", "n/a", ""]], 80) == "name   lfw\nEER %  2.00"
    assert terminal.render_table(columns, [["lfw", "2.00", "n/a", ""]]).splitlines() == [
        "name  EER %  AUC %  note", "lfw    2.00    n/a"
    ]


def test_text_is_wrapped_between_words_and_paths_stay_whole() -> None:
    text = "warning: " + "a few words " * 10 + "\n  " + "indented " * 10 + "\npage: " + "x" * 50
    lines = terminal.draw([text], 40).splitlines()
    assert lines[-1] == "page: " + "x" * 50 and max(map(len, lines[:-1])) <= 40
    assert lines[0].startswith("warning: a few") and lines[1].startswith("  ") and lines[1].strip()
    assert len([line for line in lines if line.startswith("  indented")]) == 3
    assert terminal.draw([text, text]) == f"{text}\n\n{text}"


class Screen:
    """A stdout that claims to be a terminal."""

    encoding, errors = "utf-8", "strict"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_styles_are_for_terminals_without_no_color(monkeypatch, capfd) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    for table in (evaluation(*ROWS), evaluation(ROWS[0])):
        screen = Screen()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", screen)
            print_result({}, False, lambda value, table=table: [table])
            assert "\x1b[1m" in screen.text
            screen.text = ""
            patch.setenv("NO_COLOR", "1")
            print_result({}, False, lambda value, table=table: [table])
            assert "accuracy %" in screen.text and "\x1b" not in screen.text
        print_result({}, False, lambda value, table=table: [table])
        assert "\x1b" not in capfd.readouterr().out


def test_a_pipe_gets_all_columns_of_any_width(monkeypatch, capfd) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = evaluation(*ROWS)
    print_result({}, False, lambda value: [table, "folder: x"])
    assert capfd.readouterr().out == f"{table.to_text()}\n\nfolder: x\n"
    assert max(map(len, table.to_text().splitlines())) > 80


def test_markdown_only_on_request(run_cli, assert_refused, monkeypatch, capfd) -> None:
    table = evaluation(*ROWS)
    print_result({}, False, lambda value: [table, "folder: x"], as_markdown=True)
    assert capfd.readouterr().out == f"{table.to_markdown()}\n- folder: x\n"
    for words in (("eval", "--json"), ("study", "--dry-run"), ("bench", "pack", "--json"), ("demo", "--json")):
        assert_refused(*words, "--markdown", says="--markdown prints the tables of a result")
    assert "--markdown" not in run_cli("sample", "--help").out
