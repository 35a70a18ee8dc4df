"""`facesyn init`: flags, questions, refusals, and a run of the recipe that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_lines import check, in_lines
from tiny_detector import photo, write_detector
from tiny_recognizer import write_faces, write_recognizer, write_run_inputs

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.cli import init
from facesyn_cli.config.recipe import load_recipe
from facesyn_cli.data.pixels import encode_png


@pytest.mark.parametrize("words", in_lines(init.EXAMPLES), ids=" ".join)
def test_examples(words: list[str]) -> None:
    check(words)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    write_run_inputs(folder, 6, 3)
    (folder / "raw").mkdir()
    (folder / "raw" / "a.png").write_bytes(encode_png(photo((12, 12))))
    write_detector(folder / "detector.onnx")
    write_recognizer(folder / "recognizer", embedding_size=32)
    return folder


def test_without_a_terminal_the_defaults_work(tmp_path: Path, run_cli) -> None:
    file = tmp_path / "mine.yaml"
    ran = run_cli("init", file)
    assert ran.code == 0, ran.err
    assert "none; the networks of the packaged starter" in ran.out
    assert ran.out.splitlines()[-1].strip() == f"facesyn run --config {file} --work runs/mine"
    sections = load_recipe(str(file))
    assert sections["sample"]["ldm"] == "starter-ldm" and "train-ldm" not in sections and "eval" not in sections
    planned = run_cli("run", "--config", file, "--work", tmp_path / "w", "--dry-run", "--json")
    assert planned.code == 0 and planned.json()["sample"]["counts"]["images"] == 2000, planned.err


def test_json_says_what_was_found_and_decided(inputs: Path, tmp_path: Path, run_cli) -> None:
    ran = run_cli("init", tmp_path / "a.yaml", "--photos", inputs / "0-images", "--recognizer", inputs / "recognizer",
                  "--ids", 5, "--json")
    assert ran.code == 0, ran.err
    made = ran.json()
    assert made["choices"]["photos"] == {
        "path": str(inputs / "0-images"), "images": 18, "identities": 6, "has_identities": True, "is_aligned": True,
        "sizes": ["112 x 112"],
    }
    digest = file_digest(inputs / "recognizer" / "model.safetensors")
    assert made["choices"]["embedding"] == {"architecture": "ir-tiny", "size": 32, "digest": digest}
    assert made["sections"]["train-ldm"]["denoiser"]["context_size"] == 32
    assert made["sections"] == load_recipe(str(tmp_path / "a.yaml")) and made["choices"]["ids"] == 5


def test_raw_photos_are_aligned_first(inputs: Path, tmp_path: Path, run_cli, assert_refused) -> None:
    raw = ("init", tmp_path / "a.yaml", "--photos", inputs / "raw")
    assert_refused(*raw, says=("256 x 256", "--detector", "--no-align"))
    assert not (tmp_path / "a.yaml").exists()
    ran = run_cli(*raw, "--detector", inputs / "detector.onnx", "--json")
    assert ran.code == 0 and next(iter(ran.json()["sections"])) == "align", ran.err
    ran = run_cli(*raw, "--no-align", "--force", "--json")
    assert ran.code == 0 and "align" not in ran.json()["sections"], ran.err
    assert not ran.json()["choices"]["photos"]["has_identities"]


@pytest.mark.parametrize(("words", "says"), [
    (["--photos", "nowhere"], "nowhere does not exist"),
    (["--recognizer", "starter"], "--photos"),
    (["--size", "full"], "--photos"),
    (["--photos", "0-images", "--align"], "--detector"),
    (["--photos", "0-images", "--autoencoder", "x"], "--size medium"),
    (["--photos", "0-images", "--recognizer", "raw"], "raw"),
    (["--pairs", "0-test-pairs.txt"], "--pair-images"),
    (["--pair-images", "0-test"], "--pairs"),
    (["--judge", "nothing.onnx"], "nothing.onnx does not exist"),
])
def test_refusals(inputs: Path, tmp_path: Path, assert_refused, monkeypatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(inputs)
    assert_refused("init", tmp_path / "a.yaml", *words, says=says)
    assert not (tmp_path / "a.yaml").exists()


def test_an_existing_file_stays(tmp_path: Path, run_cli, assert_refused) -> None:
    (tmp_path / "a.yaml").write_text("mine")
    assert_refused("init", tmp_path / "a.yaml", says="--force")
    assert (tmp_path / "a.yaml").read_text() == "mine"
    assert run_cli("init", tmp_path / "a.yaml", "--force").code == 0


def test_on_a_terminal_it_asks_again_after_a_wrong_answer(inputs: Path, tmp_path: Path, run_cli, monkeypatch) -> None:
    answers = {
        "Face photos": ["nowhere", "0-images"], "Recognizer": ["starter"], "Size": ["huge", "small"],
        "Identities": ["0", "4"], "Images of each": ["3"], "Independent": [""], "Verification": ["0-test-pairs.txt"],
        "Folder or zip of the images": ["0-test"],
    }
    asked = []

    def prompt(question: str, **options: object) -> str:
        asked.append(question)
        name = max((name for name in answers if question.startswith(name)), key=len)
        return answers[name].pop(0)

    monkeypatch.chdir(inputs)
    monkeypatch.setattr(init, "_has_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", prompt)
    ran = run_cli("init", tmp_path / "a.yaml", "--json")
    assert ran.code == 0, ran.err
    assert not any(answers.values()) and len(asked) == 11
    assert "nowhere does not exist" in ran.err and "'huge'" in ran.err
    sections = ran.json()["sections"]
    assert sections["eval"] == {"pairs": ["0-test-pairs.txt"], "images": "0-test"}
    assert sections["sample"]["ids"] == 4 and sections["embed"]["images"] == "0-images"
    ran = run_cli("init", tmp_path / "b.yaml", "--yes")
    assert ran.code == 0 and len(asked) == 11


def test_the_recipe_runs_as_it_stands(inputs: Path, tmp_path: Path, run_cli) -> None:
    """Its networks are the packaged ones; only what takes minutes is made smaller, in the file."""
    file = tmp_path / "a.yaml"
    ran = run_cli("init", file, "--photos", inputs / "0-images", "--ids", 2, "--per-id", 2, "--pairs",
                  inputs / "0-test-pairs.txt", "--pair-images", inputs / "0-test", "--judge", inputs / "recognizer")
    assert ran.code == 0, ran.err
    sections = load_recipe(str(file))
    sections["train-ldm"] |= {"steps": 2, "batch_size": 8, "validation_fraction": 0, "preview_every": 0}
    sections["gen-contexts"]["filters"] = []
    sections["sample"]["scheduler"]["steps"] = 2
    sections["train-fr"] |= {
        "backbone": {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1]}, "epochs": 1, "batch_size": 4,
        "norm_batch_size": 4, "lr_schedule": {"name": "constant"},
    }
    file.write_text(yaml.safe_dump(sections))
    ran = run_cli("run", "--config", file, "--work", tmp_path / "w", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json()) == list(sections)
    assert len(ImageSet.open(tmp_path / "w" / "5-augmented").entries) == 2 * (2 + 2)
    assert (tmp_path / "w" / "9-report" / "report.html").is_file()


def test_run_proposes_the_recognizer_of_the_starter(inputs: Path, tmp_path: Path, run_cli, assert_refused) -> None:
    assert_refused("run", says="facesyn init")
    assert_refused("run", "--config", "small", "align.size=3", says="no section for align.size=3")
    assert_refused("run", "--config", "small", "--work", tmp_path / "w",
                   says="embed.weights=starter-embedder train-ldm.autoencoder=FILE")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"embed": {"images": str(inputs / "0-test")}}))
    words = ("--config", recipe, "--work", tmp_path / "w", "--device", "cpu", "embed.batch_size=4")
    refused = assert_refused("run", *words, says="embed.weights")
    line = refused.err.strip().rpartition("Run: facesyn ")[2]
    ran = run_cli(*line.split(), "--json")
    assert ran.code == 0 and ran.json()["embed"]["embeddings"] == 15, ran.err


def test_a_part_of_the_starter_is_not_guessed(tmp_path: Path, assert_refused, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(tmp_path / "faces", 1, 1)
    (tmp_path / "starter-embedder").mkdir()
    assert_refused("embed", "--images", "faces", "--weights", "starter-embedder", says="also a file or folder here")


def test_run_draws_its_pipeline(tmp_path: Path, run_cli, assert_refused) -> None:
    file = tmp_path / "p.svg"
    ran = run_cli("run", "--config", "small", "--to", "sample", "--work", tmp_path / "none", "sample.per_id=3",
                  "--draw", file)
    assert ran.code == 0 and ran.out.strip() == str(file), ran.err
    text = file.read_text(encoding="utf-8")
    assert 'id="stage-sample"' in text and "stage-augment" not in text and "x 3 images" in text
    assert "facesyn run --config small --to sample --draw p.svg sample.per_id=3" in text
    assert not (tmp_path / "none").exists()
    assert_refused("run", "--config", "small", "--draw", tmp_path / "p.png", says=".svg")
