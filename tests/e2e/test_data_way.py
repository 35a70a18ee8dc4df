"""All eight stages and the report on eight made-up identities: a second run does nothing, a change is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_recognizer import write_run_inputs

from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.work import FOLDERS
from facesyn_cli.pipelines.run import run_recipe

BACKBONE = {"name": "ir-tiny", "widths": [8, 16], "blocks": [1, 1], "embedding_size": 32}


def recipe(work: Path) -> dict:
    fr = {
        "backbone": BACKBONE, "head": "cosface", "epochs": 1, "stages": [], "batch_size": 8, "norm_batch_size": 8,
        "workers": 1,
    }
    return {
        "embed": {"weights": str(work / "0-embedder")},
        "train-ldm": {
            "autoencoder_model": {"name": "pixels", "downscale": 7}, "image_size": 112, "steps": 3, "batch_size": 4,
            "denoiser": {
                "name": "idiff-unet", "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
                "context_size": 32, "context_width": 32,
            },
            "preview_every": 0, "validate_every": 0, "validation_fraction": 0,
        },
        "gen-contexts": {"source": "two-stage", "filters": [], "count": 4, "weights": str(work / "0-embedder")},
        "sample": {"per_id": 3, "scheduler": {"name": "ddim", "steps": 2}, "batch_size": 4},
        "augment": {"augmentation": {"name": "oversample", "copies": 2}},
        "pack": {"name": "TFR-tiny"},
        "train-fr": fr,
        "eval": {"pairs": [str(work / "0-test-pairs.txt")], "images": str(work / "0-test")},
        "report": {"judges": [str(work / "0-embedder")]},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work folder in which every stage has run."""
    work = tmp_path_factory.mktemp("way")
    write_run_inputs(work, 8, 3)
    sections = recipe(work)
    teach = {**sections["train-fr"], "inputs": [str(work / "0-images")], "out": str(work / "0-embedder")}
    run_recipe({"train-fr": teach}, work, [], {})
    run_recipe(sections, work, [], {})
    return work


def test_every_stage_wrote_its_folder(finished: Path) -> None:
    for name in FOLDERS.values():
        if name in ("0-images", "1-embedder", "2-autoencoder", "2-identity"):  # given, or not in this recipe
            continue
        header = read_header(finished / name)
        assert header is not None, name
        assert header.parents and header.digest and header.package_version


def test_counts_add_up_along_the_way(finished: Path) -> None:
    assert len(ImageSet.open(finished / "4-samples").entries) == 4 * 3
    assert len(ImageSet.open(finished / "5-augmented").entries) == 4 * (3 + 2)
    labels = (finished / "6-records" / "labels.txt").read_text().splitlines()
    assert len([line for line in labels if line and not line.startswith("#")]) in (4, 5)
    table = json.loads((finished / "8-table" / "table.json").read_text())
    text = json.dumps(table)
    assert "accuracy" in text


def test_a_second_run_changes_nothing(finished: Path) -> None:
    def state() -> dict[str, int | bytes]:
        """The report is written anew at each run, with the same content."""
        return {
            str(p): p.read_bytes() if p.parent.name == "9-report" else p.stat().st_mtime_ns
            for p in finished.rglob("*") if p.is_file()
        }

    before = state()
    run_recipe(recipe(finished), finished, [], {})
    assert state() == before


def test_the_command_skips_and_refuses(finished: Path, run_cli, assert_refused) -> None:
    path = finished.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(finished)))
    ran = run_cli("run", "--config", path, "--work", finished, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json()) == set(recipe(finished))
    assert_refused("run", "--config", path, "--work", finished, "sample.scheduler.steps=3", says="scheduler.steps 2 3")
    assert_refused("run", "--config", path, "--work", finished, "nonsense=3", says="stage.key=value")
    assert_refused("run", "--config", path, "--work", finished, "--from", "smaple", says="unknown stage")
    assert_refused("run", "--work", finished, says="--config")
    planned = run_cli("run", "--config", path, "--work", finished.parent / "new", "--dry-run", "--json")
    assert planned.code == 0 and set(planned.json()) == set(recipe(finished))
    assert not (finished.parent / "new").exists()
