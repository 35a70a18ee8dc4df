"""`facesyn train-ldm` on a handful of drawn faces: what it learns, writes, resumes and refuses."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, spawn
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_ldm import EMBEDDER, NUM_IDENTITIES, PER_IDENTITY, train_arguments, write_embedding_set, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli import signals
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.data import latent_cache
from facesyn_cli.models.loading import load_backbone, load_denoiser
from facesyn_cli.training.trainer import Trainer


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-ldm")
    write_faces(folder)
    return folder


def _lines(out: Path, figure: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def _largest_difference(first: Path, second: Path) -> float:
    a, b = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def _header(out: Path) -> dict:
    return json.loads((out / "facesyn.json").read_text())


def test_it_learns_and_writes_what_sample_needs(faces: Path, tmp_path: Path, run_cli):
    more = ("preview_every=20", "preview_steps=3", "preview_identities=3", "preview_samples=2", "save_steps=[10]",
            "keep_checkpoints=1", "clip=1")
    ran = run_cli(*train_arguments(faces, tmp_path / "ldm", *more, steps=40), "--json")
    assert ran.code == 0, ran.err
    out = tmp_path / "ldm"
    losses = _lines(out, "loss")
    assert len(losses) == 40 and np.mean(losses[-8:]) < 0.7 * np.mean(losses[:3])
    validation = _lines(out, "val_loss")
    assert len(validation) == 8 and validation[-1] < validation[0]
    assert ran.json()["val_loss"] == validation[-1] and ran.json()["steps"] == 40

    loaded = load_denoiser(out)
    assert loaded.config.embedder == EMBEDDER
    assert (loaded.config.latent_channels, loaded.config.latent_size) == (3, 8)
    assert len(loaded.config.latent_std) == 3 and min(loaded.config.latent_std) > 0
    assert loaded.config.autoencoder["name"] == "pixels"
    assert load_denoiser(out / "weights" / "step-00000010").config == loaded.config
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000040"]
    with Image.open(out / "previews" / "step-00000020.png") as grid:
        assert grid.size == (3 * 16 + 2 * 2, 3 * 16 + 2 * 2)  # (real + 2 samples) x 3 identities, 2 pixels apart


def test_the_published_file_is_read_back(faces: Path, tmp_path: Path, run_cli, assert_refused):
    out = tmp_path / "ldm"
    assert_refused(*train_arguments(faces, out, "export_published=true"), says="latent_statistics=identity")
    ran = run_cli(*train_arguments(faces, out, "export_published=true", "latent_statistics=identity", steps=4))
    assert ran.code == 0, ran.err
    loaded = load_denoiser(out)
    assert loaded.config.latent_std is None
    published = torch.load(out / "ema_averaged_model_4.ckpt", weights_only=True)
    assert len(published) == len(loaded.module.state_dict()) + 8
    again = load_denoiser(out / "ema_averaged_model_4.ckpt")
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(published[f"eps_model.{key}"], value)
        assert torch.equal(again.module.state_dict()[key], value)
    assert published["alpha_bars"][999].item() == pytest.approx(4.03583e-5, rel=1e-5)


def test_the_ema_is_written_and_it_is_an_average(faces: Path, tmp_path: Path, run_cli):
    assert run_cli(*train_arguments(faces, tmp_path / "ldm")).code == 0
    last = read_tensors(tmp_path / "ldm" / "checkpoints" / "step-00000007" / "model.safetensors")
    written = read_tensors(tmp_path / "ldm" / "model.safetensors")
    assert any(not torch.equal(last[key], written[key]) for key in last)


def test_same_command_same_weights_and_a_finished_folder_is_left_alone(faces: Path, tmp_path: Path, run_cli):
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        assert run_cli(*train_arguments(faces, out)).code == 0
    assert _lines(first, "loss") == _lines(second, "loss")
    assert _largest_difference(first, second) == 0
    assert _header(first)["digest"] == _header(second)["digest"]
    before = (first / "model.safetensors").stat().st_mtime_ns
    again = run_cli(*train_arguments(faces, first), "--json")
    assert again.code == 0 and again.json()["steps"] == 7
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    other = run_cli(*train_arguments(faces, tmp_path / "other"), "--seed", 1)
    assert other.code == 0 and _largest_difference(first, tmp_path / "other") > 0


def test_accumulation_and_latents_on_the_fly_agree(faces: Path, tmp_path: Path, run_cli):
    variants = {
        "plain": (), "accumulated": ("accumulate=3",), "micro_batch": ("micro_batch=3",),
        "fly": ("latents=fly",), "workers": ("latents=fly", "workers=1"),
        "no-attention-memory": ("denoiser.checkpoint_activations=true",),
    }
    for name, more in variants.items():
        ran = run_cli(*train_arguments(faces, tmp_path / name, "optimizer.eps=0.001", *more, steps=4))
        assert ran.code == 0, ran.err
    for name in list(variants)[1:]:
        # eps keeps Adam from blowing rounding up where the gradient is next to zero
        assert _largest_difference(tmp_path / "plain", tmp_path / name) < 1e-5, name
        assert _lines(tmp_path / name, "loss") == pytest.approx(_lines(tmp_path / "plain", "loss"), abs=1e-5)
    assert not (tmp_path / "fly" / "latents").exists()


def test_a_stop_signal_saves_and_the_next_run_ends_with_the_same_weights(
    faces: Path, tmp_path: Path, run_cli, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ("log_every=4", "checkpoint_every=100")
    assert run_cli(*train_arguments(faces, whole, *more, steps=9)).code == 0
    taken = Trainer._take_step

    def stop_after_five(trainer, *arguments):
        loss = taken(trainer, *arguments)
        if trainer.step == 5:
            signals._remember(15, None)
        return loss

    monkeypatch.setattr(Trainer, "_take_step", stop_after_five)
    ran = run_cli(*train_arguments(faces, stopped, *more, steps=9))
    assert ran.code == 143 and not (stopped / "facesyn.json").exists()
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step-00000005"]
    signals.reset()
    monkeypatch.undo()
    assert run_cli(*train_arguments(faces, stopped, *more, steps=9)).code == 0
    assert _largest_difference(whole, stopped) == 0
    # the loss since the last report lives through the stop
    assert _lines(stopped, "loss") == pytest.approx(_lines(whole, "loss"), rel=1e-12)
    assert _header(whole)["digest"] == _header(stopped)["digest"]


def test_muon_trains_resumes_and_shows_the_rate_of_the_hidden_layers(
    faces: Path, tmp_path: Path, run_cli, assert_refused
):
    muon = ("optimizer={name: muon, lr: 0.01, momentum: 0.9, weight_decay: 0.01, adamw_lr: 0.002}", "clip=1",
            "lr_schedule={name: milestones, milestones: [6], gamma: 0.5, warmup_steps: 2}", "validate_every=0")
    for name, runs in {"whole": (12,), "grown": (5, 12)}.items():
        for steps in runs:
            ran = run_cli(*train_arguments(faces, tmp_path / name, *muon, steps=steps))
            assert ran.code == 0, ran.err
    assert _largest_difference(tmp_path / "whole", tmp_path / "grown") == 0
    losses = _lines(tmp_path / "whole", "loss")
    assert losses == _lines(tmp_path / "grown", "loss") and np.mean(losses[-4:]) < np.mean(losses[:4])
    assert _lines(tmp_path / "whole", "lr") == pytest.approx([0.005, *[0.01] * 5, *[0.005] * 6])
    new = tmp_path / "new"
    assert_refused(*train_arguments(faces, new, "optimizer.name=muon", "--dry-run"), says="muon has two learning rates")
    assert_refused(*train_arguments(faces, new, "optimizer.adamw_lr=0.1", "--dry-run"), says="adamw_lr belongs to muon")
    assert_refused(*train_arguments(faces, tmp_path / "whole", steps=12), says="optimizer.name")


def test_killed_at_random_moments_it_ends_with_the_same_weights(faces: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(spawn(*train_arguments(faces, whole, steps=30))).code == 0
    rng = random.Random(4)
    for _ in range(2):
        process = spawn(*train_arguments(faces, killed, steps=30))
        have = len(list((killed / "checkpoints").glob("step-*"))) and max((killed / "checkpoints").glob("step-*")).name
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:  # until it has got further, then a bit more
            found = sorted((killed / "checkpoints").glob("step-*"))
            if found and found[-1].name != have:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        finish(process)
    ran = finish(spawn(*train_arguments(faces, killed, steps=30)))
    assert ran.code == 0, ran.err
    assert _largest_difference(whole, killed) == 0
    assert _lines(killed, "loss") == _lines(whole, "loss")
    assert not list(killed.rglob(".tmp-*"))


def test_the_precision_may_change_on_resume_and_is_recorded(faces: Path, tmp_path: Path, run_cli):
    parts = ((3, "fp32"), (6, "bf16"), (9, "fp32"))
    for name, runs in {"start": ((1, "fp32"),), "plain": ((9, "fp32"),), "mixed": parts}.items():
        for steps, precision in runs:
            words = ("optimizer.lr=1e-9",) if name == "start" else ()
            ran = run_cli(*train_arguments(
                faces, tmp_path / name, "optimizer.eps=0.001", "ema=null", f"precision={precision}", *words, steps=steps
            ))
            assert ran.code == 0, ran.err
            assert ("it holds from here on" in ran.err) == (name == "mixed" and steps > 3)
    found = [(part["from_step"], part["precision"]) for part in _header(tmp_path / "mixed")["extra"]["parts"]]
    assert found == [(0, "fp32"), (3, "bf16"), (6, "fp32")]
    assert "parts" not in _header(tmp_path / "plain")["extra"]
    start, plain, mixed = (read_tensors(tmp_path / name / "model.safetensors") for name in ("start", "plain", "mixed"))
    away, apart = (
        sum((a[key].double() - b[key].double()).square().sum().item() for key in plain) ** 0.5
        for a, b in ((plain, start), (mixed, plain))
    )
    # a gradient in bf16 has an error of some 2^-8 = 0.4 % for each layer that it passes
    assert 0 < apart < 0.1 * away


def test_a_torn_checkpoint_is_not_used(faces: Path, tmp_path: Path, run_cli):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for out in (whole, torn):
        assert run_cli(*train_arguments(faces, out, steps=6)).code == 0
    (torn / "facesyn.json").rename(torn / "facesyn.begun.json")
    (torn / "checkpoints" / "step-00000006" / "state.json").unlink()
    (torn / "model.safetensors").unlink()
    assert run_cli(*train_arguments(faces, torn, steps=6)).code == 0
    assert _largest_difference(whole, torn) == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine-warm-restarts"])
def test_more_steps_extend_a_finished_training(faces: Path, tmp_path: Path, run_cli, schedule: str):
    more = (f"lr_schedule.name={schedule}", "lr_schedule.first_cycle=4")
    assert run_cli(*train_arguments(faces, tmp_path / "whole", *more, steps=9)).code == 0
    assert run_cli(*train_arguments(faces, tmp_path / "grown", *more, steps=5)).code == 0
    assert run_cli(*train_arguments(faces, tmp_path / "grown", *more, steps=9)).code == 0
    assert _largest_difference(tmp_path / "whole", tmp_path / "grown") == 0
    assert _header(tmp_path / "grown")["counts"]["steps"] == 9


def test_a_cosine_to_the_end_cannot_be_extended(faces: Path, tmp_path: Path, run_cli, assert_refused):
    cosine = "lr_schedule.name=cosine"
    assert run_cli(*train_arguments(faces, tmp_path / "ldm", cosine, steps=4)).code == 0
    assert_refused(*train_arguments(faces, tmp_path / "ldm", cosine, steps=5), says=("steps=4", "cosine", "--out"))
    assert_refused(*train_arguments(faces, tmp_path / "ldm", steps=4), says=("lr_schedule.name", "cosine"))
    assert (tmp_path / "ldm" / "facesyn.json").is_file()


JUDGED = ("judge_every=3", "judge_identities=4", "judge_images=3", "judge_steps=2")


def test_a_judge_watches_and_changes_nothing(faces: Path, tmp_path: Path, run_cli):
    judge = f"judge={write_recognizer(tmp_path / 'judge')}"
    plain, whole, stopped = tmp_path / "plain", tmp_path / "whole", tmp_path / "stopped"
    assert run_cli(*train_arguments(faces, plain)).code == 0
    ran = run_cli(*train_arguments(faces, whole, judge, *JUDGED), "--json")
    assert ran.code == 0, ran.err
    assert "3 images each of 4 people, 4 by photos held out" in ran.err and "behind the contexts" not in ran.err
    assert _largest_difference(plain, whole) == 0
    assert _lines(plain, "loss") == _lines(whole, "loss")

    judged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if "nearest" in line]
    assert [line["step"] for line in judged] == [3, 6, 7]
    for line in judged:
        assert 0 <= line["nearest"] <= 1 and line["nearest"] * 12 == pytest.approx(round(line["nearest"] * 12))
        assert all(-1 <= line[name] <= 1 for name in ("consistency", "to_photo", "to_other"))
    assert ran.json()["to_photo"] == judged[-1]["to_photo"]

    assert run_cli(*train_arguments(faces, stopped, judge, *JUDGED, steps=5)).code == 0
    assert run_cli(*train_arguments(faces, stopped, judge, *JUDGED)).code == 0
    resumed = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines() if "nearest" in line]
    assert [line for line in resumed if line["step"] != 5] == judged  # 5 was the last step once
    plan = run_cli(*train_arguments(faces, tmp_path / "new", judge, *JUDGED), "--dry-run", "--json").json()["plan"]
    assert plan["network_evaluations"]["denoiser_for_judge"] == 3 * 4 * 3 * 2


def test_a_judge_behind_the_contexts_is_pointed_out(faces: Path, tmp_path: Path, run_cli):
    judge = write_recognizer(tmp_path / "judge")
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    header = json.loads((tmp_path / "embeddings" / "facesyn.json").read_text())
    header["extra"]["embedder"] = load_backbone(judge).digest
    (tmp_path / "embeddings" / "facesyn.json").write_text(json.dumps(header))
    ran = run_cli(*train_arguments(tmp_path, tmp_path / "ldm", f"judge={judge}", steps=1))
    assert ran.code == 0, ran.err
    assert ran.err.count("is the network behind the contexts") == 1


def test_tensorboard_shows_the_figures_of_the_log(faces: Path, tmp_path: Path, run_cli):
    for steps in (4, 7):
        assert run_cli(*train_arguments(faces, tmp_path / "ldm", "tracking=tensorboard", steps=steps)).code == 0
    events = EventAccumulator(str(tmp_path / "ldm" / "tensorboard"))
    events.Reload()
    for figure in ("loss", "val_loss", "lr"):
        assert [event.value for event in events.Scalars(figure)] == pytest.approx(_lines(tmp_path / "ldm", figure))
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 8))


def test_unconditional_training_needs_no_embeddings(faces: Path, tmp_path: Path, run_cli, assert_refused):
    arguments = train_arguments(faces, tmp_path / "ldm", "denoiser.conditioning=unconditional", "preview_every=7",
                                "preview_steps=2", "preview_identities=1", "preview_samples=1")
    place = arguments.index("--embeddings")
    without = arguments[:place] + arguments[place + 2 :]
    ran = run_cli(*without)
    assert ran.code == 0, ran.err
    config = json.loads((tmp_path / "ldm" / "config.json").read_text())
    assert config["embedder"] is None and config["denoiser"]["conditioning"] == "unconditional"
    assert_refused(*arguments, says="unconditional")
    assert_refused(*without, "judge=any", "--out", tmp_path / "other", says=("judge", "unconditional denoiser"))


def test_images_without_embedding_are_left_out_and_counted(faces: Path, tmp_path: Path, run_cli):
    whole = EmbeddingSet.open(faces / "embeddings")
    write_embedding_set(tmp_path / "embeddings", whole.keys[:12], whole.vectors[:12])
    shutil.copytree(faces / "faces", tmp_path / "faces")
    (tmp_path / "faces" / "p4" / "0.png").write_bytes(b"broken")  # `embed` left it out, so it is not needed
    ran = run_cli(*train_arguments(tmp_path, tmp_path / "ldm", steps=2))
    assert ran.code == 0, ran.err
    total = NUM_IDENTITIES * PER_IDENTITY
    assert f"{total - 12} of {total} have no embedding and are left out" in ran.err


def test_dry_run_writes_nothing(faces: Path, tmp_path: Path, run_cli):
    ran = run_cli(*train_arguments(faces, tmp_path / "ldm", steps=100), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = ran.json()["plan"]
    counts = plan["counts"]
    assert counts["images"] + counts["validation_images"] == NUM_IDENTITIES * PER_IDENTITY
    assert counts["images_without_embedding"] == 0 and counts["steps"] == 100
    assert plan["network_evaluations"] == {"denoiser": 800} and plan["chosen"]["latent"] == "3x8x8"
    assert plan["chosen"]["epochs"] == pytest.approx(800 / counts["images"], abs=0.01)
    assert plan["chosen"]["latents"] == "cache"
    assert not (tmp_path / "ldm").exists()


def test_latents_are_cached_where_they_fit_on_the_disk(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    more, cache = ("optimizer.eps=0.001", f"latent_cache={tmp_path / 'cache'}"), tmp_path / "cache"
    monkeypatch.setattr(latent_cache, "free_bytes", lambda folder: 0)
    ran = run_cli(*train_arguments(faces, tmp_path / "full", *more, steps=4), "--dry-run", "--json")
    assert ran.json()["plan"]["chosen"]["latents"] == "fly" and ran.json()["plan"]["chosen"]["latent_cache_mib"] == 0
    ran = run_cli(*train_arguments(faces, tmp_path / "full", *more, steps=4))
    assert ran.code == 0 and not cache.exists()
    assert "latents are encoded at every step" in ran.err and f"the disk of {cache}" in ran.err
    monkeypatch.undo()
    ran = run_cli(*train_arguments(faces, tmp_path / "cached", *more, steps=4))
    assert ran.code == 0 and len(list(cache.glob("*/part-*.npy"))) == 1 and "at every step" not in ran.err
    assert _largest_difference(tmp_path / "full", tmp_path / "cached") < 1e-5
    monkeypatch.setattr(latent_cache, "free_bytes", lambda folder: 0)  # the cache exists, and is used
    ran = run_cli(*train_arguments(faces, tmp_path / "again", *more, steps=4))
    assert ran.code == 0 and "at every step" not in ran.err
    assert _largest_difference(tmp_path / "again", tmp_path / "cached") == 0


def test_a_gradient_that_is_not_finite_stops_before_the_weights(faces: Path, tmp_path: Path, assert_refused):
    arguments = train_arguments(faces, tmp_path / "ldm", "optimizer.lr=1e30", steps=50)
    assert_refused(*arguments, says=("is not finite", "step"))
    newest = sorted((tmp_path / "ldm" / "checkpoints").glob("step-*"))
    assert all(
        value.isfinite().all() for path in newest for value in read_tensors(path / "model.safetensors").values()
    )


WRONG = {
    "no such folder": (["--images", "missing"], ("missing", "does not exist")),
    "no image in it": (["--images", "empty"], ("empty", "holds no images")),
    "embeddings missing": (["--embeddings", "missing"], ("missing", "EmbeddingSet")),
    "embeddings of others": (["--embeddings", "others"], ("p0/0", "nobody/0")),
    "no autoencoder": (["autoencoder_model=null"], ("--autoencoder",)),
    "autoencoder file missing": (["autoencoder_model=null", "--autoencoder", "./missing.pt"], ("missing.pt",)),
    "unknown setting": (["step=3"], ("step", "steps")),
    "wrong type": (["flip=often"], ("flip", "often")),
    "size does not fit the autoencoder": (["image_size=17"], ("image_size 17", "divisible by 2")),
    "size does not fit the denoiser": (
        ["denoiser.multipliers=[1,1,1,1,1]", "denoiser.attention=[false,false,false,false,false]"], ("divisible by 16",)
    ),
    "channels do not fit": (["denoiser.in_channels=4"], ("denoiser.in_channels=3",)),
    "embedding size does not fit": (["denoiser.context_size=64"], ("denoiser.context_size=32",)),
    "unknown denoiser": (["denoiser.name=unet"], ("unet", "idiff-unet")),
    "fp16 on a CPU": (["precision=fp16"], ("fp16", "CUDA")),
    "compile on a CPU": (["compile=true"], ("compile", "CUDA")),
    "everything held out": (["validation_fraction=0.999999"], ("validation_fraction",)),
    "not a schedule": (["beta_start=0.5"], ("beta_start",)),
    "lowered horizon": (["--steps", "0"], ("steps",)),
    "out is a file": (["--out", "file"], ("file",)),
    "out belongs to somebody": (["--out", "faces"], ("not made by facesyn",)),
    "judge missing": (["judge=missing.onnx"], ("missing.onnx",)),
    "unknown tracker": (["tracking=[wandbb]"], ("wandbb", "tensorboard")),
    "missing tracker": (["tracking.name=clearml"], ("tracking=clearml", 'pip install "clearml"')),
    "no such device": (["device=cuda:7"], ("cuda:7",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case: str, faces: Path, tmp_path: Path, monkeypatch, assert_refused):
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    write_embedding_set(tmp_path / "others", ["nobody/0"], np.ones((1, 32)))
    monkeypatch.chdir(tmp_path)
    words, says = WRONG[case]
    assert_refused(*train_arguments(tmp_path, tmp_path / "ldm"), *words, says=says)
    assert not (tmp_path / "ldm" / "facesyn.json").exists()


def test_an_image_broken_since_it_was_embedded_is_named(faces: Path, tmp_path: Path, assert_refused):
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    (tmp_path / "faces" / "p2" / "1.png").write_bytes(b"not an image")
    for latents in ("latents=cache", "latents=fly"):
        for workers in ("workers=0", "workers=1"):
            out = tmp_path / f"{latents}-{workers}"
            assert_refused(*train_arguments(tmp_path, out, latents, workers), says="p2/1.png")
