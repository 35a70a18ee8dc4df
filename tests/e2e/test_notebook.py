"""The whole way from Python, as a notebook does it: stages as functions, results read lazily, errors caught."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_recognizer import write_run_inputs
from torch import nn

import facesyn_cli.api as facesyn

BACKBONE = {"name": "ir-tiny", "widths": [8, 16], "blocks": [1, 1], "embedding_size": 32}
DENOISER = {
    "name": "idiff-unet", "channels": 32, "multipliers": [1], "attention": [True], "num_blocks": 1,
    "context_size": 32, "context_width": 32,
}
TRAINING = {"backbone": BACKBONE, "head": "cosface", "epochs": 1, "batch_size": 8, "norm_batch_size": 8, "workers": 1,
            "device": "cpu", "lr_schedule": {"name": "constant"}}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("notebook")
    write_run_inputs(work, 8, 3)
    facesyn.train_fr(work, inputs=[work / "0-images"], out=work / "0-embedder", **TRAINING)
    return work


@pytest.fixture(scope="module")
def made(work: Path) -> facesyn.Images:
    """Train an LDM and sample from it."""
    facesyn.embed(work, weights=work / "0-embedder", device="cpu")
    facesyn.train_ldm(
        work, autoencoder_model={"name": "pixels", "downscale": 7}, image_size=112, steps=3, batch_size=4,
        denoiser=DENOISER, preview_every=0, validate_every=0, validation_fraction=0, device="cpu",
    )
    facesyn.gen_contexts(work, source="two-stage", filters=[], count=4, weights=work / "0-embedder", device="cpu")
    return facesyn.sample(work, per_id=3, scheduler={"name": "ddim", "steps": 2}, batch_size=4, device="cpu")


def test_samples_are_images_by_identity(made: facesyn.Images, work: Path) -> None:
    assert made.folder == work / "4-samples" and made.counts["images"] == len(made) == 12
    assert made.identities == ["0", "1", "2", "3"] and made.keys[:2] == ["0/0", "0/1"]
    key, first = next(iter(made))
    assert key == "0/0" and first.size == (112, 112) and first.mode == "RGB"
    assert np.array_equal(np.array(made["0/0"]), np.array(first))
    assert made.contact_sheet(identities=2, per_id=3, size=20).size == (60, 40)
    assert str(made.folder) in str(made)


def test_a_second_call_returns_the_finished_set(made: facesyn.Images, work: Path) -> None:
    settings = {"per_id": 3, "batch_size": 4, "device": "cpu"}
    again = facesyn.sample(work, scheduler={"name": "ddim", "steps": 2}, **settings)
    assert again.summary["made_now"] == 0 and again.keys == made.keys
    with pytest.raises(facesyn.UserError, match="scheduler.steps +2 +3"):
        facesyn.sample(work, scheduler={"name": "ddim", "steps": 3}, **settings)


def test_what_lies_before_the_samples_is_open_too(made: facesyn.Images, work: Path) -> None:
    embeddings, contexts = facesyn.open(work / "1-embeddings"), facesyn.open(work / "3-contexts")
    assert isinstance(embeddings, facesyn.Embeddings) and isinstance(contexts, facesyn.Contexts)
    assert embeddings.vectors.shape == (len(embeddings), 32) and len(embeddings.keys) == 24
    assert contexts.vectors.shape == (4, 32) and contexts.identities == ["0", "1", "2", "3"]
    assert np.allclose(np.linalg.norm(contexts.vectors, axis=1), 1, atol=1e-5)
    face = contexts.face("0")
    assert face is not None and face.size == (112, 112)
    ldm = facesyn.open(work / "2-ldm")
    assert isinstance(ldm, facesyn.Network) and isinstance(ldm.load(), nn.Module)
    assert ldm.metrics[-1]["step"] == 3 and np.isfinite(ldm.metrics[-1]["loss"])
    assert ldm.config["denoiser"]["name"] == "idiff-unet"


def test_from_samples_to_a_table_and_a_report(made: facesyn.Images, work: Path) -> None:
    augmented = facesyn.augment(work, augmentation={"name": "oversample", "copies": 2})
    assert len(augmented) == 4 * (3 + 2)
    packed = facesyn.pack(work, name="TFR-tiny", format="rec")
    assert len(packed) == 20 and sorted(set(packed.labels.tolist())) == [0, 1, 2, 3]
    assert {image.size for _, image in packed} == {(112, 112)}
    trained = facesyn.train_fr(work, **TRAINING)
    assert isinstance(trained.load(), nn.Module) and trained.metrics
    pairs = {"pairs": [work / "0-test-pairs.txt"], "images": work / "0-test", "device": "cpu"}
    table = facesyn.evaluate(work, **pairs)
    assert table.average_accuracy is not None and 0 <= table.average_accuracy <= 1
    assert table.table.rows[0].pairs > 0 and table._repr_markdown_().startswith("| benchmark |")
    report = facesyn.report(work, judges=[work / "0-embedder"], device="cpu")
    assert report.page.is_file() and report.figures


def test_a_plan_does_nothing(made: facesyn.Images, work: Path) -> None:
    plan = facesyn.plan("sample", work, per_id=3, scheduler={"name": "ddim", "steps": 2}, out=work / "new",
                        device="cpu")
    assert plan.state == "new" and plan.counts["images"] == 12 and not (work / "new").exists()
    assert plan.network_evaluations["denoiser"] >= 24
    with pytest.raises(facesyn.UserError, match="unknown stage 'smaple'"):
        facesyn.plan("smaple", work)


@pytest.mark.parametrize(("settings", "says"), [
    ({"per_idd": 3}, "did you mean 'per_id'"),
    ({"scheduler": "dimm"}, "did you mean 'ddim'"),
    ({"scheduler": {"name": "ddim", "stepz": 3}}, "scheduler.stepz"),
    ({"per_id": 0}, "greater than or equal to 1"),
    ({"recipe": "admsi"}, "did you mean 'admis'"),
])
def test_wrong_settings_are_a_user_error(work: Path, settings: dict, says: str) -> None:
    with pytest.raises(facesyn.UserError, match=says):
        facesyn.sample(work, **settings)


def test_a_recipe_gives_the_settings_below_the_given_ones(made: facesyn.Images, work: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("sample:\n  per_id: 5\n  scheduler: {name: ddim, steps: 7}\n  batch_size: 4\n")
    plan = facesyn.plan("sample", work, recipe=str(recipe), scheduler={"steps": 2}, per_id=3, device="cpu")
    assert plan.state == "finished"
    results = facesyn.run(str(recipe), work, sample={"scheduler": {"steps": 2}, "per_id": 3, "device": "cpu"})
    sampled = results["sample"]
    assert list(results) == ["sample"] and isinstance(sampled, facesyn.Images) and len(sampled) == 12


def test_foreign_files_open_by_content(work: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "contexts.npy", np.eye(4, 32, dtype=np.float32))
    assert isinstance(facesyn.open(tmp_path / "contexts.npy"), facesyn.Contexts)
    images = tmp_path / "faces" / "anna"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "1.png")
    opened = facesyn.open(tmp_path / "faces")
    assert isinstance(opened, facesyn.Images) and opened.identities == ["anna"] and opened.counts == {}
    weights = facesyn.open(work / "0-embedder" / "model.safetensors")
    assert isinstance(weights, facesyn.Network)
    (tmp_path / "text.txt").write_text("nothing")
    for nothing in (tmp_path / "nowhere", tmp_path / "text.txt"):
        with pytest.raises(facesyn.UserError):
            facesyn.open(nothing)


def test_signal_handlers_are_those_of_the_caller_again(made: facesyn.Images, work: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    facesyn.sample(work, per_id=3, scheduler={"name": "ddim", "steps": 2}, batch_size=4, device="cpu")
    assert signal.getsignal(signal.SIGINT) is before
