"""A recognizer of latents by `train-identity`, and the identity loss of `train-ldm` that takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_latents import embedder_arguments, ldm_arguments, write_faces

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_config, read_tensors
from facesyn_cli.cli.main import run_command_line
from facesyn_cli.models.loading import load_backbone, load_denoiser


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("tiny-latents"))


@pytest.fixture(scope="module")
def recognizer(faces: Path) -> Path:
    assert run_command_line(embedder_arguments(faces, faces / "recognizer", steps=30)) == 0
    return faces / "recognizer"


def figures(out: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def identity(recognizer: Path, faces: Path) -> tuple[str, ...]:
    return (f"identity_recognizer={recognizer}", f"identity_contexts={faces / 'contexts.npy'}", "identity.images=3",
            "identity.steps=3")


def test_it_learns_from_latents_and_says_which(faces: Path, recognizer: Path):
    cosines = figures(recognizer, "cosine")
    assert np.mean(cosines[-3:]) > np.mean(cosines[:3]) + 0.2 and figures(recognizer, "val_cosine")[-1] > 0.3
    config = read_config(recognizer)
    assert config["autoencoder"]["path"] == "taesd3" and config["image_size"] == 32
    module = load_backbone(recognizer, reads="latents").module
    assert module.std.min() > 0 and not torch.equal(module.std, torch.ones_like(module.std))
    header = json.loads((recognizer / "facesyn.json").read_text())
    assert header["parents"]["autoencoder"]["path"] == "taesd3"


def test_a_stopped_recognizer_ends_with_the_same_weights(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run_cli(*embedder_arguments(faces, straight)).code == 0
    asked = iter([None] * 3 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    assert run_cli(*embedder_arguments(faces, stopped)).code == 143
    monkeypatch.undo()
    ran = run_cli(*embedder_arguments(faces, stopped))
    assert ran.code == 0 and "resuming from step" in ran.err
    assert same_weights(straight, stopped)


def test_both_trainings_share_a_cache(faces: Path, recognizer: Path, tmp_path: Path, run_cli):
    before = sorted((faces / "latents").iterdir())
    ran = run_cli(*ldm_arguments(faces, tmp_path / "ldm", steps=1))
    assert ran.code == 0 and sorted((faces / "latents").iterdir()) == before, ran.err


def test_the_identity_loss_is_trained_resumed_and_switched_off(
    faces: Path, recognizer: Path, tmp_path: Path, run_cli, monkeypatch
):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    more = (*identity(recognizer, faces), "identity.weight=2", "identity.fall=0.5", "precision=bf16",
            "identity.feature_weight=0.3")
    assert run_cli(*ldm_arguments(faces, straight, *more, steps=8)).code == 0
    for name in ("identity", "identity_drawn", "features"):
        found = figures(straight, name)
        assert min(found) > 0 and max(found) < 4
    header = json.loads((straight / "facesyn.json").read_text())
    assert {"identity_recognizer", "identity_contexts"} <= header["parents"].keys()
    asked = iter([None] * 4 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    assert run_cli(*ldm_arguments(faces, stopped, *more, steps=8)).code == 143
    monkeypatch.undo()
    assert run_cli(*ldm_arguments(faces, stopped, *more, steps=8)).code == 0
    assert same_weights(straight, stopped) and figures(straight, "identity") == figures(stopped, "identity")
    plain = tmp_path / "plain"
    assert run_cli(*ldm_arguments(faces, plain, "precision=bf16", steps=8)).code == 0
    assert not same_weights(plain, straight) and not figures(plain, "identity")


def test_the_recognizer_of_the_run_is_taken_unless_the_weight_is_zero(
    faces: Path, recognizer: Path, tmp_path: Path, run_cli, assert_refused
):
    shutil.copytree(recognizer, tmp_path / "2-identity")
    words = ldm_arguments(faces, tmp_path / "2-ldm", "--work", tmp_path, steps=2)
    ran = run_cli(*words, "identity.weight=0.5")
    assert ran.code == 0 and f"recognizer of latents in {tmp_path / '2-identity'}" in ran.err, ran.err
    assert min(figures(tmp_path / "2-ldm", "identity")) > 0
    parents = json.loads((tmp_path / "2-ldm" / "facesyn.json").read_text())["parents"]
    assert Path(parents["identity_recognizer"]["path"]) == tmp_path / "2-identity"
    ran = run_cli(*words, "--out", tmp_path / "without", "identity.weight=0")
    assert ran.code == 0 and not figures(tmp_path / "without", "identity"), ran.err
    (tmp_path / "2-identity" / "facesyn.json").rename(tmp_path / "2-identity" / "facesyn.begun.json")
    assert_refused(*words, "--out", tmp_path / "x", says="2-identity")


def test_a_heavy_identity_loss_falls(faces: Path, recognizer: Path, tmp_path: Path, run_cli):
    out = tmp_path / "ldm"
    more = (f"identity_recognizer={recognizer}", "identity.weight=20", "optimizer.lr=0.01", "context_dropout=0")
    assert run_cli(*ldm_arguments(faces, out, *more, steps=60)).code == 0
    found = figures(out, "identity")
    assert np.mean(found[-10:]) < 0.9 * np.mean(found[:10])


def test_training_starts_from_another_ldm(faces: Path, tmp_path: Path, run_cli, assert_refused):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_cli(*ldm_arguments(faces, first, "ema=null")).code == 0
    more = (f"initial_denoiser={first}", "ema=null", "optimizer.lr=1e-12")
    assert run_cli(*ldm_arguments(faces, second, *more, steps=1)).code == 0
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)
    assert load_denoiser(first).config.latent_mean == load_denoiser(second).config.latent_mean
    assert json.loads((second / "facesyn.json").read_text())["parents"]["initial_denoiser"]["path"] == str(first)
    assert_refused(*ldm_arguments(faces, tmp_path / "x", *more, "prediction=v"), says="predicts flow, prediction is v")
    assert_refused(*ldm_arguments(faces, tmp_path / "x", *more, "denoiser.width=16"), says="in the network to be")
    fine = ("denoiser.patch=1", "denoiser.position_step=0.5")
    assert_refused(*ldm_arguments(faces, tmp_path / "x", *more, fine[0]), says="only one with position_step 0.5")
    ran = run_cli(*ldm_arguments(faces, tmp_path / "fine", *more, *fine, steps=1))
    assert ran.code == 0 and load_denoiser(tmp_path / "fine").module.cfg.patch == 1, ran.err
    ran = run_cli(*ldm_arguments(faces, tmp_path / "full", *more, "denoiser.dropout=0.1", steps=1))
    assert ran.code == 0, "settings that leave the weights as they are may differ"


def test_a_training_that_goes_on_sees_other_images_and_noise(faces: Path, tmp_path: Path, run_cli):
    first, second, again, third = (tmp_path / name for name in ("first", "second", "again", "third"))
    assert run_cli(*ldm_arguments(faces, first, "ema=null")).code == 0
    for out, start in ((second, first), (again, first), (third, second)):
        more = (f"initial_denoiser={start}", "ema=null", "optimizer.lr=1e-12")
        assert run_cli(*ldm_arguments(faces, out, *more, steps=1)).code == 0
    losses = [figures(folder, "loss")[0] for folder in (second, again, third)]  # of nearly the same weights
    assert losses[0] == losses[1]
    assert abs(losses[2] - losses[0]) > 1e-3


def test_bad_settings_are_refused_in_one_line(faces: Path, recognizer: Path, tmp_path: Path, assert_refused):
    ldm = lambda *more: ldm_arguments(faces, tmp_path / "x", *more)  # noqa: E731
    given = f"identity_recognizer={recognizer}"
    assert_refused(*ldm("identity.weight=2"), says="run train-identity first, or give identity_recognizer")
    assert_refused(*ldm(given, "identity.images=2"), says="identity_contexts and identity.images")
    assert_refused(*ldm(given, f"identity_contexts={faces / 'contexts.npy'}"), says="give both or none")
    assert_refused(*ldm(given, "image_size=40", "denoiser.patch=1"), says="reads latents (16, 4, 4)")
    assert_refused(*ldm("identity_recognizer=nowhere"), says="nowhere")
    embedder = lambda *more: embedder_arguments(faces, tmp_path / "y", *more)  # noqa: E731
    assert_refused(*embedder("backbone=ir-lite"), says="backbone ir-lite reads photos, latents are given")
    assert_refused(*embedder("image_size=64"), says="set backbone.in_channels=16 backbone.latent_size=8")
    assert_refused(*embedder("decoded=fly"), says="decoded is for trainings on photos")
    photos = ("train-embedder", "--images", faces / "faces", "--embeddings", faces / "embeddings", "--out",
              tmp_path / "z")
    assert_refused(*photos, "--backbone", "latent-ir", says=("latent-ir reads latents, photos are given",
                                                             "train-identity trains it"))
    embed = ("embed", "--images", faces / "faces", "--weights", recognizer, "--out", tmp_path / "e")
    assert_refused(*embed, says="one that reads photos was expected")


def test_bfloat16_latents_are_cached_apart_and_nearly_the_same(faces: Path, tmp_path: Path, run_cli):
    found = {}
    for precision in ("fp32", "bf16"):
        cache = tmp_path / precision
        more = (f"latent_precision={precision}", f"latent_cache={cache}")
        assert run_cli(*ldm_arguments(faces, tmp_path / f"ldm-{precision}", *more, steps=1)).code == 0
        found[precision] = next(cache.iterdir()).name, np.load(next(cache.glob("*/part-00000.npy")))
    assert found["fp32"][0] != found["bf16"][0]
    plain, half = found["fp32"][1], found["bf16"][1]
    assert 0 < np.abs(plain - half).mean() < 0.05 * plain.std()
