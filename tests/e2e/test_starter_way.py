"""The recipe of the starter in miniature: from photos and a teacher to a report, and to a packed starter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_recognizer import write_recognizer, write_run_inputs

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.work import OUTPUTS, Work
from facesyn_cli.config.recipe import load_recipe
from facesyn_cli.models.loading import load_denoiser
from facesyn_cli.pipelines.run import run_recipe

STUDENT = {"name": "ir-tiny", "widths": [4, 8], "blocks": [1, 1], "embedding_size": 512}
GROUPS = {"batch_size": 8, "norm_batch_size": 8, "workers": 0}
FLOW = {"name": "flow-euler", "steps": 2}


def recipe(folder: Path, pairs: Path, test_faces: Path) -> dict:
    """Return the recipe `starter` at sizes of a test."""
    teacher = str(write_recognizer(folder / "teacher"))
    small = {
        "embed": {"weights": teacher},
        "train-embedder": {"backbone": STUDENT, "steps": 2, **GROUPS},
        "train-identity": {"backbone": {"name": "latent-ir", "widths": [8], "blocks": [1]}, "steps": 2, **GROUPS},
        "train-ldm": {
            "denoiser": {"name": "dit", "width": 16, "depth": 3, "heads": 2, "token_drop": 0.5,
                         "early_output": 1}, "steps": 4,
            "minutes": 1, "batch_size": 8, "validation_fraction": 0, "preview_every": 0,
        },
        "gen-contexts": {"count": 4, "source": "pca", "filters": [
            {"name": "quality", "images": 2, "lowest_cosine": -1.0, "scheduler": FLOW,
             "guidance": {"name": "internal"}}, {"name": "unique", "r": 1.0}]},
        "sample": {"ids": 4, "per_id": 2, "scheduler": FLOW},
        "augment": {}, "pack": {},
        "train-fr": {"backbone": STUDENT, "epochs": 1, **GROUPS, "transforms": [],
                     "lr_schedule": {"name": "constant"}},
        "eval": {"pairs": [str(pairs)], "images": str(test_faces)},
        "report": {"judges": [teacher]},
    }
    whole = load_recipe("starter")
    assert list(small) == list(whole)
    return {stage: {**whole[stage], **settings} for stage, settings in small.items()}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a work folder in which the stages of the recipe have run."""
    folder = tmp_path_factory.mktemp("starter-way")
    run_recipe(recipe(folder, *write_run_inputs(folder, 6, 3)), folder, [], {"device": "cpu"})
    return folder


def test_one_run_leads_from_photos_to_the_report(work: Path) -> None:
    for stage in load_recipe("starter"):
        assert read_header(Work(work).folder(OUTPUTS[stage])) is not None, stage
    parents = read_header(work / "2-ldm").parents
    assert Path(parents["identity_recognizer"].path) == work / "2-identity" and parents["autoencoder"].path == "taesd3"
    assert '"identity"' in (work / "2-ldm" / "metrics.jsonl").read_text()
    assert (work / "2-identity" / "latents").is_dir() and not (work / "2-ldm" / "latents").exists()
    assert (work / "9-report" / "report.html").is_file()


def test_a_run_is_packed_and_its_starter_draws(work: Path, tmp_path: Path, run_cli) -> None:
    starter = tmp_path / "starter"
    ran = run_cli("starter", "pack", "--work", work, "--out", starter, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json()["parts"]) == {"ldm", "embedder", "contexts", "identity"}
    assert ran.json()["half_precision"]["least_cosine"] > 0.99
    assert load_denoiser(starter / "ldm").config.embedder == file_digest(starter / "embedder" / "model.safetensors")
    teacher = file_digest(work / "teacher" / "model.safetensors")
    assert f"stands in for its teacher ({teacher})" in (starter / "embedder" / "README.md").read_text()
    for part, said in {"ldm": "dit", "embedder": "ir-tiny", "contexts": "pca", "identity": "latent-ir"}.items():
        assert said in (starter / part / "README.md").read_text()
    use = ("--starter", starter, "--work", tmp_path / "new", "--device", "cpu", "--json")
    ran = run_cli("sample", *use, "--ids", 3, "--per-id", 2)
    assert ran.code == 0, ran.err
    assert len(ImageSet.open(tmp_path / "new" / "4-samples").entries) == 6
    more = ("gen-contexts", "--starter", starter, "--device", "cpu", "--json", "--count", 2)
    ran = run_cli(*more, "--work", tmp_path / "more")
    assert ran.code == 0 and ran.json()["source"] == "pca" and ran.json()["dropped"] == {"unique": 0}, ran.err
    assert "starter: contexts and settings of filters, source" in ran.err
    parents = read_header(tmp_path / "more" / "3-contexts").parents
    assert {name: Path(parent.path) for name, parent in parents.items()} == {"known": starter / "contexts"}
    ran = run_cli("sample", "--starter", starter, "--work", tmp_path / "more", "--device", "cpu", "--per-id", 1)
    assert ran.code == 0 and "make the contexts" not in ran.err, ran.err
    ran = run_cli("embed", "--starter", starter, "--work", tmp_path / "seen", "--images", work / "0-images",
                  "--device", "cpu")
    assert ran.code == 0, ran.err
    for words, known in (((), starter / "contexts"), (("--source", "pca"), tmp_path / "seen" / "1-embeddings")):
        ran = run_cli(*more, "--work", tmp_path / "seen", "--out", tmp_path / f"of-{known.name}", *words)
        assert ran.code == 0 and ran.json()["source"] == "pca", ran.err
        assert Path(read_header(tmp_path / f"of-{known.name}").parents["known"].path) == known
    known = f"known={starter / 'contexts'}"
    ran = run_cli(*more, "--work", tmp_path / "given", known, "source.scheduler.name=flow-euler")
    assert ran.code == 0 and ran.json()["source"] == "two-stage", ran.err
    ran = run_cli(*more, "--work", tmp_path / "other", "--source", "two-stage")
    assert ran.code == 0 and ran.json()["source"] == "two-stage", ran.err
    assert "starter: LDM, recognizer" in ran.err
    quality = "filters=[{name: quality, images: 2, lowest_cosine: -1, scheduler: {name: flow-euler, steps: 2}}]"
    ran = run_cli(*more, "--work", tmp_path / "judged", quality)
    assert ran.code == 0 and ran.json()["dropped"] == {"quality": 0}, ran.err
    assert "starter: contexts, LDM, recognizer" in ran.err


    teacher_embeddings = ("--embeddings", work / "1-embeddings", "--out", tmp_path / "of-teacher")
    trained = ("train-ldm", "--work", tmp_path / "seen", "--images", work / "0-images", "--device", "cpu", "--steps", 1,
               "batch_size=4", "prediction=flow", "image_size=112", "preview_every=0", "validation_fraction=0",
               "denoiser={name: dit, width: 16, depth: 1, heads: 2}", f"identity_recognizer={starter / 'identity'}")
    ran = run_cli(*trained, "--autoencoder", "taesd3")
    assert ran.code == 0 and '"identity"' in (tmp_path / "seen" / "2-ldm" / "metrics.jsonl").read_text(), ran.err
    ran = run_cli(*trained, "--autoencoder", "taesd3", *teacher_embeddings, f"initial_denoiser={starter / 'ldm'}",
                  "denoiser.depth=3", "denoiser.early_output=1")
    assert ran.code == 0 and "new to it" not in ran.err, ran.err  # what the packed recognizer learned from
    ran = run_cli("sample", "--ldm", starter / "ldm", "--contexts", work / "3-contexts", "--out", tmp_path / "faces",
                  "--device", "cpu", "--ids", 1, "--per-id", 1, "--steps", 2)
    assert ran.code == 0, ran.err


def test_a_recognizer_of_other_latents_or_embeddings_is_not_packed(work: Path, tmp_path: Path, assert_refused) -> None:
    pack = ("starter", "pack", "--work", tmp_path, "--out", tmp_path / "starter")
    for folder in work.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "2-identity").unlink()
    own = shutil.copytree(work / "2-identity", tmp_path / "2-identity", ignore=shutil.ignore_patterns("latents"))
    config = read_json(own / "config.json")
    write_json(own / "config.json", {**config, "distilled_from": "sha256:" + "5" * 64})
    assert_refused(*pack, says=("2-identity", "was conditioned on embeddings of another one", "--part identity=FOLDER"))
    write_json(own / "config.json", {**config, "autoencoder": {**config["autoencoder"], "digest": "sha256:other"}})
    assert_refused(*pack, says=("2-identity", "was trained on latents of another autoencoder"))
    shutil.rmtree(own)
    assert_refused(*pack, "--part", f"identity={tmp_path / 'nothing'}", says="train-identity makes it")


def test_the_plan_of_the_recipe_shows_every_stage(tmp_path: Path, run_cli) -> None:
    words = ("--config", "starter", "--work", tmp_path / "none", "embed.weights=x.onnx")
    ran = run_cli("run", *words, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = ran.json()
    assert list(plan) == list(load_recipe("starter"))
    assert plan["train-ldm"]["settings"]["denoiser"]["name"] == "dit"
    assert plan["embed"]["state"] == "waiting" and "does not exist" in plan["embed"]["reason"]
    assert not (tmp_path / "none").exists()
