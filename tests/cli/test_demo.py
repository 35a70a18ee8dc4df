"""`facesyn demo` on a tiny starter, twice; and without a starter."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_starter import write_starter

from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.starter_files import Starter
from facesyn_cli.artifacts.text_tables import to_text
from facesyn_cli.artifacts.work import Work
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import read_pairs
from facesyn_cli.pipelines import demo

SIZES = {"identities": 6, "test_identities": 5, "test_samples": 3, "pairs": 1}
SECTIONS = {
    "sample": {"per_id": 3},
    "augment": {"augmentation": {"name": "photometric", "copies": 1}},
    "pack": {"name": "TFR-tiny"},
    "train-fr": {
        "backbone": {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 16}, "head": "cosface",
        "epochs": 1, "stages": [], "batch_size": 8, "norm_batch_size": 8, "workers": 1,
    },
    "eval": {},
    "report": {},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, Starter]:
    """Return the folder of a finished demo, what it had to say, and the starter."""
    folder = tmp_path_factory.mktemp("demo")
    starter = Starter.open(write_starter(folder))
    return folder / "demo", demo.run_demo(folder / "demo", starter, 0, "cpu", SECTIONS, SIZES), starter


def test_it_goes_the_whole_way(finished) -> None:
    path, results, starter = finished
    assert set(results) >= set(SECTIONS)
    assert len(ImageSet.open(path / "4-samples").entries) == 6 * 3
    assert len(ImageSet.open(path / "5-augmented").entries) == 2 * 6 * 3
    assert len(ImageSet.open(path / "0-test").entries) == 5 * 3
    for table in ("8-table", "8-table-untrained", "8-table-embedder"):
        assert BenchmarkTable.read(path / table).rows[0].pairs == 20
    assert (path / "4-samples.contact_sheet.png").is_file() and (path / "9-report" / "report.html").is_file()
    assert read_header(path / "4-samples").parents["ldm"].path == str(starter.part("ldm"))
    assert "'scale': 1.5" in str(read_header(path / "4-samples").config)


def test_held_out_people_are_others(finished) -> None:
    path, _, starter = finished
    train, test = (ContextSet.open(path / name) for name in ("3-contexts", demo.TEST_CONTEXTS))
    bank = ContextSet.open(starter.part("contexts"))
    assert train.identities == bank.identities[:6] and test.identities == bank.identities[6:11]
    assert train.embedder == test.embedder == bank.embedder
    assert {e.identity for e in ImageSet.open(path / "0-test").entries} == set(test.identities)


def test_pairs_are_balanced_and_distinct(finished) -> None:
    path, _, _ = finished
    pairs = read_pairs(demo.pairs_path(Work(path)), ImageSet.open(path / "0-test"), "held out")
    assert len(pairs.is_same) == 20 and sum(pairs.is_same) == 10 and pairs.folds == 10
    names = [tuple(sorted((pairs.images[a], pairs.images[b]))) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert len(set(names)) == 20
    for (one, other), is_same in zip(names, pairs.is_same, strict=True):
        assert (one.split("/")[0] == other.split("/")[0]) == is_same and one != other


def test_it_says_what_the_figures_mean(finished) -> None:
    results = finished[1]
    assert results["text"] == to_text(demo.blocks(results))
    table = next(block for block in demo.blocks(results) if not isinstance(block, str))
    for row, folder in zip(table.rows, ("8-table", "8-table-untrained", "8-table-embedder"), strict=True):
        measured = BenchmarkTable.read(finished[0] / folder).rows[0]
        assert row[1] == f"{100 * measured.accuracy:.2f}" and row[2] == f"{100 * measured.eer:.2f}"
    for said in ("18 faces of 6 people", "same 20 pairs of 5 other", "do not say", "contact_sheet.png", "report.html"):
        assert said in results["text"]


def test_again_it_changes_nothing(finished) -> None:
    path, _, starter = finished
    kept = [path / name for name in ("4-samples", "0-test", "6-records", "7-fr", "8-table", "3-contexts")]

    def state() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for folder in kept for p in folder.rglob("*") if p.is_file()}

    before = state()
    demo.run_demo(path, starter, 0, "cpu", SECTIONS, SIZES)
    assert state() == before


def test_too_few_contexts_are_refused(finished, tmp_path: Path) -> None:
    starter = finished[2]
    with pytest.raises(UserError, match="holds 12 contexts; the demo needs 13"):
        demo.run_demo(tmp_path, starter, 0, "cpu", SECTIONS, {**SIZES, "identities": 8})


def test_more_pairs_than_exist_are_refused() -> None:
    with pytest.raises(ValidationError, match="exist"):
        demo.DemoConfig(test_identities=2, test_samples=2)


def test_without_a_starter_it_is_refused(monkeypatch, tmp_path: Path, assert_refused) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("facesyn_cli.artifacts.starter_files.packaged_folder", lambda: tmp_path / "nowhere")
    assert_refused("demo", says="no starter is packaged")
    assert_refused("demo", "--starter", "nowhere", says="nowhere is no starter")
    assert not list(tmp_path.iterdir())
