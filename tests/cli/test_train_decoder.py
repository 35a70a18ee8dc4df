"""`facesyn train-decoder`: a decoder that goes on learning from what an LDM draws, and who takes it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, spawn
from damage import check_fallback
from tiny_decoder import ADVERSARY, AUTOENCODER, LDM, TRAINING, all_losses, train_arguments, write_run
from tiny_ldm import EMBEDDING_SIZE, SIZE
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.weights import read_config, read_tensors
from facesyn_cli.models.loading import latents_of, load_autoencoder, load_backbone


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("tiny-decoder"))


def _lines(out: Path) -> list[dict]:
    return [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def _same(first: Path, second: Path) -> bool:
    a, b = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_drawn_faces_come_nearer_to_whom_they_should_show_and_the_encoder_keeps_still(work, tmp_path, run_cli):
    out = tmp_path / "out"
    more = (*all_losses(work), "optimizer.lr=0.01", "drawn.identity_weight=3", "features_coarsest=0.7")
    ran = run_cli(*train_arguments(work, out, *more, steps=60), "--json")
    assert ran.code == 0, ran.err
    lines = _lines(out)
    names = {"drawn_identity", "adversarial", "discriminator", "identity"}
    assert names <= lines[0].keys()
    identity = [line["drawn_identity"] for line in lines]
    assert np.mean(identity[-10:]) < np.mean(identity[:3]) - 0.02
    before, after = load_autoencoder(work / "2-autoencoder"), load_autoencoder(out)
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        latents = before.encode(pixels)
        assert torch.equal(after.encode(pixels), latents)
        assert not torch.equal(after.decode(latents), before.decode(latents))
    assert latents_of(out) == [before.section["digest"]]
    header = json.loads((out / "facesyn.json").read_text())
    assert header["command"] == "train-decoder"
    assert set(header["parents"]) >= {"initial", "ldm", "embeddings", "features"}
    assert len(read_tensors(out / "drawn.safetensors")["latents"]) == 9
    embeddings = EmbeddingSet.open(work / "1-embeddings")
    assert embeddings.embedder == load_backbone(work / "recognizer").digest


def test_interpolation_writes_a_mixture_with_what_it_began_as(work, tmp_path, run_cli):
    outs = {}
    for share in (1.0, 0.6):
        outs[share] = tmp_path / str(share)
        more = (*ADVERSARY, "optimizer.lr=0.05", f"interpolation={share}", "preview_every=2")
        assert run_cli(*train_arguments(work, outs[share], *more, steps=5)).code == 0
    first = read_tensors(work / "2-autoencoder" / "model.safetensors")
    trained, mixed = (read_tensors(outs[share] / "model.safetensors") for share in (1.0, 0.6))
    assert any(not torch.equal(first[key], trained[key]) for key in first)
    assert all(torch.allclose(mixed[key], 0.4 * first[key] + 0.6 * trained[key], atol=1e-6) for key in first)
    checkpoints = (read_tensors(outs[share] / "checkpoints" / "step-00000005" / "ema.safetensors") for share in outs)
    whole, half = checkpoints                       # what goes on training is not mixed
    assert all(torch.equal(whole[key], half[key]) for key in whole)
    figures = [json.loads((out / "facesyn.json").read_text())["extra"]["val_psnr"] for out in outs.values()]
    assert figures[0] != figures[1]
    assert (outs[0.6] / "previews" / "interpolated.png").exists()
    assert not (outs[1.0] / "previews" / "interpolated.png").exists()
    grown = train_arguments(work, outs[0.6], *ADVERSARY, "optimizer.lr=0.05", "interpolation=0.6", steps=7)
    straight = train_arguments(work, tmp_path / "7", *ADVERSARY, "optimizer.lr=0.05", "interpolation=0.6", steps=7)
    assert run_cli(*grown).code == run_cli(*straight).code == 0
    assert _same(outs[0.6], tmp_path / "7")


def test_sample_takes_the_decoder_of_the_run_and_no_other(work, tmp_path, run_cli):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("0-images", "1-embeddings", "2-autoencoder", "2-ldm"):
        (mine / name).symlink_to(work / name)
    np.save(tmp_path / "contexts.npy", np.eye(EMBEDDING_SIZE, dtype=np.float32)[:2])
    draw = ("sample", "--work", mine, "--contexts", tmp_path / "contexts.npy", "--per-id", 1, "scheduler.steps=2",
            "device=cpu")
    assert run_cli(*draw, "--out", tmp_path / "before").code == 0
    assert run_cli(*train_arguments(mine, mine / "2-decoder", *ADVERSARY, "optimizer.lr=0.1", steps=3)).code == 0
    assert run_cli(*draw, "--out", tmp_path / "after").code == 0
    assert run_cli(*draw, "--out", tmp_path / "named", "--ldm", work / "2-ldm").code == 0
    assert run_cli(*draw, "--out", tmp_path / "given", "--autoencoder", mine / "2-decoder").code == 0
    pictures = {name: sorted(p.read_bytes() for p in (tmp_path / name).glob("*/*.png"))
                for name in ("before", "after", "named", "given")}
    assert pictures["before"] == pictures["named"] and pictures["after"] == pictures["given"]
    assert len(pictures["before"]) == 2 and not set(pictures["before"]) & set(pictures["after"])
    assert json.loads((tmp_path / "after" / "facesyn.json").read_text())["parents"]["autoencoder"]["path"].endswith(
        "2-decoder")


def test_killed_at_a_random_moment_it_ends_with_the_same_weights(work, tmp_path, run_cli):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = all_losses(work)
    assert run_cli(*train_arguments(work, whole, *more, steps=12)).code == 0
    process = spawn(*train_arguments(work, killed, *more, steps=12))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.01)
    time.sleep(random.Random(7).uniform(0, 0.15))
    process.kill()
    finish(process)
    assert run_cli(*train_arguments(work, killed, *more, steps=12)).code == 0
    assert _same(whole, killed) and _lines(whole) [-1]["loss"] == _lines(killed)[-1]["loss"]


def test_dry_run_says_what_is_drawn_and_writes_nothing(work, tmp_path, run_cli):
    ran = run_cli(*train_arguments(work, tmp_path / "out"), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["plan"]["network_evaluations"] == {"autoencoder": 2 * 7 * 4}
    assert ran.json()["plan"]["counts"]["sampled_latents"] == 9 and not (tmp_path / "out").exists()


def test_a_recipe_runs_it_after_the_ldm(work, tmp_path, run_cli):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"train-decoder": {"image_size": SIZE}, "train-ldm": {"image_size": SIZE}}))
    words = [f"train-ldm.{word}" for word in LDM if "image_size" not in word]
    dry = run_cli("run", "--config", recipe, "--work", work, *words, "train-ldm.steps=3", "train-ldm.batch_size=8",
                  "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert list(dry.json()) == ["train-ldm", "train-decoder"]


WRONG = {
    "no ldm": (["--ldm", "missing"], ("--ldm", "missing", "does not exist")),
    "no autoencoder": (["--initial", "missing"], ("--initial", "missing", "does not exist")),
    "no embeddings": (["--embeddings", "missing"], ("missing",)),
    "embeddings of another recognizer": (["--embeddings", "embeddings"], ("different recognizers",)),
    "a recognizer that has not embedded": (["--features", "stranger"], ("--features", "drawn.identity_weight=0")),
    "another autoencoder": (["--initial", "other"], ("2-ldm", "another autoencoder", "other")),
    "an ldm that is none": (["--ldm", "recognizer"], ("recognizer",)),
    "moving encoder": (["freeze_encoder=false"], ("freeze_encoder",)),
    "a teacher": (["teacher=2-autoencoder"], ("teacher",)),
    "unknown setting": (["drawn.number=3"], ("drawn.number",)),
    "unknown scheduler": (["drawn.scheduler=unipcc"], ("unipcc", "unipc")),
    "more steps than the LDM has": (["drawn.steps=1001"], ("1001", "1000 timesteps")),
    "nothing of the training": (["interpolation=0"], ("interpolation",)),
    "no latents": (["drawn.count=0"], ("drawn.count",)),
    "nothing to tell it what a face is": (["adversarial.weight=0"], ("--features", "adversarial.weight")),
    "other autoencoder settings": (["autoencoder={name: face-kl}"], ("face-kl",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case, work, tmp_path, monkeypatch, run_cli, assert_refused):
    monkeypatch.chdir(work)
    words, says = WRONG[case]
    if case == "another autoencoder" and not Path("other").exists():
        run = run_cli("train-autoencoder", *TRAINING, AUTOENCODER, "--images", "0-images", "--out", "other", "--steps",
                      1, "--batch-size", 4, "seed=3")
        assert run.code == 0, run.err
    if case.startswith("a recognizer that"):
        write_recognizer(Path("stranger"), embedding_size=EMBEDDING_SIZE, widths=[4, 8, 12, 20])
    for more in ((), ("--dry-run",)):
        assert_refused(*train_arguments(work, tmp_path / "out", steps=1), *words, *more, says=says)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_train_autoencoder_says_what_an_ldm_needs(work, tmp_path, assert_refused):
    plain = ("train-autoencoder", "--work", work, "--out", tmp_path / "out", *TRAINING, AUTOENCODER, "--steps", 1)
    assert_refused(*plain, f"ldm={work / '2-ldm'}", says=("freeze_encoder=true", "initial"))
    assert_refused(*plain, "drawn.count=3", says=("drawn", "ldm=FOLDER"))
    assert read_config(work / "2-autoencoder")["autoencoder"]["refine_fine"] == 8


def test_the_older_checkpoint_is_taken_when_the_newest_is_damaged(work, tmp_path, run_cli, assert_refused):
    arguments = train_arguments(work, tmp_path / "out", *ADVERSARY, "checkpoint_every=1", steps=3)
    check_fallback(run_cli, assert_refused, arguments, tmp_path / "out")
