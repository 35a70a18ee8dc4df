"""`facesyn train-autoencoder` on a handful of drawn faces: what it learns, writes, resumes and refuses."""

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
from tiny_ldm import NUM_IDENTITIES, PER_IDENTITY, SIZE, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_config, read_tensors
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.models.loading import latents_of, load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.training.trainer import Trainer

SETTINGS = (
    "device=cpu", f"image_size={SIZE}", "autoencoder.patch=2", "autoencoder.channels=[8]", "autoencoder.num_groups=4",
    "autoencoder.smooth=4", "autoencoder.latent_channels=4", "ema.maximum=0.5", "lr_schedule.warmup_steps=0",
    "validation_fraction=0.2", "validate_every=5", "preview_every=0", "log_every=1", "checkpoint_every=3",
)
LDM = (
    "device=cpu", f"image_size={SIZE}", f"output_size={SIZE}", "denoiser.channels=32", "denoiser.multipliers=[1]",
    "denoiser.attention=[false]", "denoiser.num_blocks=1", "denoiser.context_size=32", "denoiser.context_width=32",
    "denoiser.in_channels=4", "preview_every=0", "validate_every=0",
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-autoencoder")
    write_faces(folder)
    return folder


def _arguments(folder: Path, out: Path, *more: object, steps: int = 7) -> list[str]:
    words = ["train-autoencoder", "--images", folder / "faces", "--out", out, "--steps", steps, "--batch-size", 8]
    return [str(word) for word in (*words, *SETTINGS, *more)]


def _lines(out: Path, figure: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def _largest_difference(first: Path, second: Path) -> float:
    a, b = read_tensors(first / "model.safetensors"), read_tensors(second / "model.safetensors")
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def _pixels(folder: Path) -> torch.Tensor:
    with Image.open(folder / "faces" / "p0" / "0.png") as image:
        return to_pixels(np.array(image))[None]


def test_it_learns_and_writes_what_train_ldm_and_inspect_need(faces: Path, tmp_path: Path, run_cli):
    out = tmp_path / "work" / "2-autoencoder"
    more = ("optimizer.lr=0.01", "preview_every=20", "preview_images=3", "validate_every=10", "keep_checkpoints=1")
    ran = run_cli(*_arguments(faces, out, *more, steps=40), "--json")
    assert ran.code == 0, ran.err
    psnr, losses = _lines(out, "val_psnr"), _lines(out, "loss")
    assert len(psnr) == 4 and psnr == sorted(psnr) and psnr[-1] > psnr[0] + 1.5
    assert len(losses) == 40 and np.mean(losses[-8:]) < 0.6 * np.mean(losses[:3])
    assert {"l1", "kl"} <= json.loads((out / "metrics.jsonl").read_text().splitlines()[0]).keys()
    assert ran.json()["val_psnr"] == psnr[-1] and ran.json()["steps"] == 40 and ran.json()["autoencoder"] == "face-kl"
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000040"]
    with Image.open(out / "previews" / "step-00000020.png") as grid:
        assert grid.size == (3 * SIZE + 2 * 2, 2 * SIZE + 2)  # originals over reconstructions, 2 pixels apart

    loaded = load_autoencoder(out)
    assert (loaded.latent_channels, loaded.downscale) == (4, 2)
    with torch.no_grad():
        pixels = _pixels(faces)
        error = (loaded.decode(loaded.encode(pixels)) - pixels).square().mean()
    assert 10 * np.log10(4 / error) == pytest.approx(psnr[-1], abs=4)
    seen = run_cli("models", "inspect", out, "--json").json()
    assert (seen["kind"], seen["architecture"]) == ("autoencoder", "face-kl")

    ran = run_cli("train-ldm", "--work", tmp_path / "work", "--images", faces / "faces", "--embeddings",
                  faces / "embeddings", "--steps", 1, "--batch-size", 4, *LDM)
    assert ran.code == 0, ran.err
    section = load_denoiser(tmp_path / "work" / "2-ldm").config.autoencoder
    assert (section["name"], section["path"]) == ("face-kl", str(out)) and section["digest"] == loaded.section["digest"]


def test_vq_learns_with_features_and_judge(faces: Path, tmp_path: Path, run_cli):
    recognizer = write_recognizer(tmp_path / "recognizer")
    more = ("autoencoder.name=face-vq", "autoencoder.codebook_size=16", "feature_weight=0.1", "identity_weight=0.2")
    ran = run_cli(*_arguments(faces, tmp_path / "vq", "--features", recognizer, *more, steps=3))
    assert ran.code == 0, ran.err
    first = json.loads((tmp_path / "vq" / "metrics.jsonl").read_text().splitlines()[0])
    weights = {"l1": 1.0, "feature": 0.1, "identity": 0.2, "codebook": 1.0, "commitment": 0.25}
    assert first["loss"] == pytest.approx(sum(weight * first[name] for name, weight in weights.items()), rel=1e-5)
    with_features = _lines(tmp_path / "vq", "val_cosine")
    assert len(with_features) == 1 and -1 <= with_features[0] <= 1
    parents = json.loads((tmp_path / "vq" / "facesyn.json").read_text())["parents"]
    assert parents["features"]["digest"] == load_backbone(recognizer).digest
    assert load_autoencoder(tmp_path / "vq").section["name"] == "face-vq"

    assert run_cli(*_arguments(faces, tmp_path / "plain", steps=3)).code == 0
    assert run_cli(*_arguments(faces, tmp_path / "judged", f"judge={recognizer}", steps=3)).code == 0
    assert len(_lines(tmp_path / "judged", "val_cosine")) == 1  # a judge watches and changes nothing
    assert _largest_difference(tmp_path / "plain", tmp_path / "judged") == 0


def test_an_adversary_joins_late_and_lives_in_the_checkpoint(faces: Path, tmp_path: Path, run_cli):
    more = ("adversarial.weight=0.5", "adversarial.start=2", "adversarial.channels=8", "adversarial.layers=1")
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    assert run_cli(*_arguments(faces, whole, *more)).code == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    names = {"adversarial", "adversarial_factor", "discriminator"}
    assert [len(names & line.keys()) for line in lines] == [1, 1, 3, 3, 3, 3, 3]  # it learns from the first step
    newest = whole / "checkpoints" / "step-00000007"
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= {p.name for p in newest.iterdir()}
    for steps in (4, 7):
        assert run_cli(*_arguments(faces, grown, *more, steps=steps)).code == 0
    assert _largest_difference(whole, grown) == 0 and _lines(whole, "discriminator") == _lines(grown, "discriminator")
    muon = ("optimizer={name: muon, lr: 0.01, adamw_lr: 0.0004}",)  # of both networks
    for name, runs in {"muon": (5,), "muon-grown": (3, 5)}.items():
        for steps in runs:
            ran = run_cli(*_arguments(faces, tmp_path / name, *more, *muon, "adversarial.layers=2", steps=steps))
            assert ran.code == 0, ran.err
    assert _largest_difference(tmp_path / "muon", tmp_path / "muon-grown") == 0
    assert run_cli(*_arguments(faces, tmp_path / "without", steps=7)).code == 0
    assert _largest_difference(whole, tmp_path / "without") > 0
    fixed = run_cli(*_arguments(faces, tmp_path / "fixed", *more, "adversarial.adaptive=false", steps=3))
    assert fixed.code == 0 and _lines(tmp_path / "fixed", "adversarial_factor") == [0.5]


def test_a_frozen_encoder_leaves_latents_valid(faces: Path, tmp_path: Path, run_cli):
    first, tuned, again = tmp_path / "first", tmp_path / "tuned", tmp_path / "again"
    assert run_cli(*_arguments(faces, first)).code == 0
    assert run_cli(*_arguments(faces, tuned, f"initial={first}", "freeze_encoder=true", steps=3)).code == 0
    assert run_cli(*_arguments(faces, again, f"initial={tuned}", "freeze_encoder=true", steps=1)).code == 0
    before, after = load_autoencoder(first), load_autoencoder(tuned)
    with torch.no_grad():
        latents = before.encode(_pixels(faces))
        assert torch.equal(after.encode(_pixels(faces)), latents)
        assert not torch.equal(after.decode(latents), before.decode(latents))
    assert latents_of(first) == [] and latents_of(tuned) == [before.section["digest"]]
    assert latents_of(again) == [after.section["digest"], before.section["digest"]]
    moved = tmp_path / "moved"
    assert run_cli(*_arguments(faces, moved, f"initial={first}", steps=3)).code == 0
    with torch.no_grad():
        assert not torch.equal(load_autoencoder(moved).encode(_pixels(faces)), latents)
    assert latents_of(moved) == []


def test_a_light_decoder_learns_a_teachers_latents_and_sample_takes_it(
    faces: Path, tmp_path: Path, run_cli, assert_refused
):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert run_cli(*_arguments(faces, teacher, "optimizer.lr=0.01", steps=30)).code == 0
    small = ("autoencoder.patch=1", "autoencoder.channels=[4,4]", "autoencoder.smooth=0", f"teacher={teacher}")
    ran = run_cli(*_arguments(faces, student, *small, "optimizer.lr=0.01", "preview_every=30", steps=30))
    assert ran.code == 0, ran.err
    psnr = _lines(student, "val_psnr")
    assert psnr[-1] > psnr[0] + 1
    digest = load_autoencoder(teacher).section["digest"]
    assert latents_of(student) == [digest] and read_config(student)["autoencoder"]["part"] == "decoder"
    with torch.no_grad():
        latents = load_autoencoder(teacher).encode(_pixels(faces))
        made = load_autoencoder(student, part="decoder").decode(latents)
        assert made.shape == (1, 3, SIZE, SIZE) and (made - _pixels(faces)).abs().mean() < 0.5
    assert run_cli(*_arguments(faces, tmp_path / "grown", *small, "optimizer.lr=0.01", steps=12)).code == 0
    assert run_cli(*_arguments(faces, tmp_path / "grown", *small, "optimizer.lr=0.01", steps=30)).code == 0
    assert _largest_difference(student, tmp_path / "grown") == 0

    ldm = ("train-ldm", "--images", faces / "faces", "--embeddings", faces / "embeddings", "--autoencoder")
    assert run_cli(*ldm, teacher, "--out", tmp_path / "ldm", "--steps", 1, "--batch-size", 4, *LDM).code == 0
    assert_refused(*ldm, student, "--out", tmp_path / "other", "--steps", 1, *LDM, says=("student", "encoder"))
    np.save(tmp_path / "contexts.npy", np.eye(32, dtype=np.float32)[:2])
    draw = ("sample", "--ldm", tmp_path / "ldm", "--contexts", tmp_path / "contexts.npy", "--ids", 2, "--per-id", 1,
            "scheduler.steps=2", "device=cpu")
    assert run_cli(*draw, "--out", tmp_path / "a").code == 0
    ran = run_cli(*draw, "--out", tmp_path / "b", "--autoencoder", student)
    assert ran.code == 0, ran.err
    by_both = [sorted(p.read_bytes() for p in (tmp_path / name).rglob("*.png")) for name in "ab"]
    assert len(by_both[0]) == len(by_both[1]) > 1 and not set(by_both[0]) & set(by_both[1])
    assert run_cli(*_arguments(faces, tmp_path / "stranger", *small[:3], "initial=" + str(student),
                               f"teacher={teacher}", steps=1)).code == 0


def test_the_same_command_gives_the_same_weights_and_does_nothing_twice(faces: Path, tmp_path: Path, run_cli):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_cli(*_arguments(faces, first)).code == 0
    assert run_cli(*_arguments(faces, second, "memory_gib=0", "workers=1")).code == 0
    assert _largest_difference(first, second) == 0 and _lines(first, "loss") == _lines(second, "loss")
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert run_cli(*_arguments(faces, first), "--json").json()["steps"] == 7
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert run_cli(*_arguments(faces, tmp_path / "other"), "--seed", 1).code == 0
    assert _largest_difference(first, tmp_path / "other") > 0


def test_a_stop_signal_saves_and_the_next_run_ends_with_the_same_weights(
    faces: Path, tmp_path: Path, run_cli, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ("log_every=4", "checkpoint_every=100")
    assert run_cli(*_arguments(faces, whole, *more, steps=9)).code == 0
    taken = Trainer._take_step

    def stop_after_five(trainer, *arguments):
        loss = taken(trainer, *arguments)
        if trainer.step == 5:
            signals._remember(15, None)
        return loss

    monkeypatch.setattr(Trainer, "_take_step", stop_after_five)
    ran = run_cli(*_arguments(faces, stopped, *more, steps=9))
    assert ran.code == 143 and not (stopped / "facesyn.json").exists()
    assert [p.name for p in (stopped / "checkpoints").iterdir()] == ["step-00000005"]
    signals.reset()
    monkeypatch.undo()
    assert run_cli(*_arguments(faces, stopped, *more, steps=9)).code == 0
    assert _largest_difference(whole, stopped) == 0
    # the loss since the last report lives through the stop
    assert _lines(stopped, "loss") == pytest.approx(_lines(whole, "loss"), rel=1e-12)


def test_killed_at_random_moments_it_ends_with_the_same_weights(faces: Path, tmp_path: Path, run_cli):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_cli(*_arguments(faces, whole, steps=12)).code == 0
    rng = random.Random(4)
    process = spawn(*_arguments(faces, killed, steps=12))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.15))
    process.kill()
    finish(process)
    assert list(killed.glob("checkpoints/step-*"))
    assert run_cli(*_arguments(faces, killed, steps=12)).code == 0
    assert _largest_difference(whole, killed) == 0
    assert _lines(killed, "loss") == _lines(whole, "loss")
    assert not list(killed.rglob(".tmp-*"))


def test_a_cosine_to_the_end_cannot_be_extended(faces: Path, tmp_path: Path, run_cli, assert_refused):
    cosine = "lr_schedule.name=cosine"
    assert run_cli(*_arguments(faces, tmp_path / "out", cosine, steps=2)).code == 0
    assert_refused(*_arguments(faces, tmp_path / "out", cosine, steps=3), says=("steps=2", "cosine", "--out"))


def test_bf16_trains(faces: Path, tmp_path: Path, run_cli):
    ran = run_cli(*_arguments(faces, tmp_path / "out", "precision=bf16", "autoencoder.name=face-vq", steps=3))
    assert ran.code == 0, ran.err
    losses = _lines(tmp_path / "out", "loss")
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert all(value.dtype == torch.float32 for value in read_tensors(tmp_path / "out/model.safetensors").values())


def test_dry_run_writes_nothing(faces: Path, tmp_path: Path, run_cli):
    ran = run_cli(*_arguments(faces, tmp_path / "out", steps=100), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = ran.json()["plan"]
    counts = plan["counts"]
    assert counts["images"] + counts["validation_images"] == NUM_IDENTITIES * PER_IDENTITY
    assert plan["network_evaluations"] == {"autoencoder": 800} and plan["chosen"]["latent"] == "4x8x8"
    assert counts["trained_parameters"] == counts["parameters"] and plan["chosen"]["images_in_memory_mib"] is not None
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_the_stage_runs_it_before_train_ldm(faces: Path, tmp_path: Path, run_cli):
    recipe = tmp_path / "r.yaml"
    given = {"image_size": SIZE, "steps": 1, "batch_size": 4}
    recipe.write_text(json.dumps({
        "train-ldm": {**given, "images": str(faces / "faces"), "embeddings": str(faces / "embeddings")},
        "train-autoencoder": {**given, "images": str(faces / "faces"), "autoencoder": {"name": "face-kl"}},
    }))
    words = [f"train-autoencoder.{word}" for word in SETTINGS if "=" in word and "image_size" not in word]
    words += [f"train-ldm.{word}" for word in LDM if "image_size" not in word]
    dry = run_cli("run", "--config", recipe, "--work", tmp_path / "work", *words, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert list(dry.json()) == ["train-autoencoder", "train-ldm"]
    assert dry.json()["train-autoencoder"]["chosen"]["latent"] == "4x8x8"
    assert dry.json()["train-ldm"]["state"] == "waiting" and "autoencoder" in dry.json()["train-ldm"]["reason"]
    ran = run_cli("run", "--config", recipe, "--work", tmp_path / "work", *words, "--json")
    assert ran.code == 0, ran.err
    assert load_denoiser(tmp_path / "work" / "2-ldm").config.autoencoder["path"].endswith("2-autoencoder")


def test_a_gradient_that_is_not_finite_stops_before_the_weights(faces: Path, tmp_path: Path, assert_refused):
    arguments = _arguments(faces, tmp_path / "out", "optimizer.lr=1e30", "clip=null", steps=50)
    assert_refused(*arguments, says=("is not finite", "step"))
    newest = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert all(
        value.isfinite().all() for path in newest for value in read_tensors(path / "model.safetensors").values()
    )


WRONG = {
    "no such folder": (["--images", "missing"], ("missing", "does not exist")),
    "no image in it": (["--images", "empty"], ("empty", "holds no images")),
    "a broken image": (["--images", "broken"], ("0.png", "cannot read")),
    "unknown setting": (["step=3"], ("step", "steps")),
    "wrong type": (["flip=often"], ("flip", "often")),
    "patch that is no power of two": (["autoencoder.patch=3"], ("patch", "power of two")),
    "widths that do not divide": (["autoencoder.channels=[6]"], ("channels", "num_groups=4")),
    "size does not fit": (["image_size=17"], ("image_size 17", "divisible by 2")),
    "not one of ours": (["autoencoder={name: kl-f8}"], ("kl-f8", "face-kl and face-vq can")),
    "one without weights": (["autoencoder={name: pixels}"], ("pixels", "face-kl and face-vq can")),
    "frozen from nothing": (["freeze_encoder=true"], ("freeze_encoder", "initial")),
    "a removed autoencoder": (["autoencoder={name: face-pca}"], ("'face-pca' was removed", "face-kl")),
    "removed settings": (
        ["interpolation=1", "adversarial.lr_factor=1"], ("unknown setting 'interpolation'", "'adversarial.lr_factor'")
    ),
    "initial is missing": (["initial=missing"], ("missing",)),
    "initial is a recognizer": (["initial=recognizer"], ("recognizer",)),
    "features missing": (["--features", "missing"], ("missing", "does not exist")),
    "features are no recognizer": (["--features", "faces"], ("faces", "a face recognizer")),
    "weights without features": (["feature_weight=1"], ("feature_weight", "--features")),
    "features without weights": (
        ["--features", "recognizer", "feature_weight=0", "identity_weight=0"], ("feature_weight", "both 0")
    ),
    "nothing to learn from": (["l1_weight=0"], ("l1_weight", "mse_weight")),
    "negative weight": (["kl_weight=-1"], ("kl_weight",)),
    "unknown adversarial setting": (["adversarial.wait=3"], ("adversarial.wait",)),
    "images too small for the discriminator": (["adversarial.weight=1"], ("adversarial.layers=3", "24", "16")),
    "teacher is missing": (["teacher=./missing.pt"], ("missing.pt",)),
    "teacher with other channels": (
        ["teacher=small-teacher"], ("3 channels", "set autoencoder.latent_channels=3")
    ),
    "fp16 on a CPU": (["precision=fp16"], ("fp16", "CUDA")),
    "everything held out": (["validation_fraction=0.999999"], ("validation_fraction",)),
    "no such device": (["device=cuda:7"], ("cuda:7",)),
    "out is a file": (["--out", "file"], ("file",)),
    "out belongs to somebody": (["--out", "faces"], ("not made by facesyn",)),
    "unknown tracker": (["tracking=wandbb"], ("wandbb", "tensorboard")),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line(case: str, faces: Path, tmp_path: Path, monkeypatch, run_cli, assert_refused):
    shutil.copytree(faces, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken" / "p0").mkdir(parents=True)
    (tmp_path / "broken" / "p0" / "0.png").write_bytes(b"\x89PNG not really")
    write_recognizer(tmp_path / "recognizer")
    monkeypatch.chdir(tmp_path)
    if case == "teacher with other channels":
        assert run_cli(*_arguments(tmp_path, tmp_path / "small-teacher", "autoencoder.latent_channels=3",
                                   steps=1)).code == 0
    words, says = WRONG[case]
    assert_refused(*_arguments(tmp_path, tmp_path / "out", steps=1), *words, says=says)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_onnx_recognizer_judges_and_teaches_as_the_torch_network_does(faces: Path, tmp_path: Path, run_cli):
    pytest.importorskip("onnx")
    from facesyn_cli.models.onnx_export import export_onnx

    file = tmp_path / "recognizer.onnx"
    export_onnx(load_backbone(write_recognizer(tmp_path / "recognizer")).module, 112, file)
    seen = {}
    for name in (file, tmp_path / "recognizer"):
        out = tmp_path / f"by-{name.name}"
        ran = run_cli(*_arguments(faces, out, "--features", name, "feature_weight=0", f"judge={file}", steps=2))
        assert ran.code == 0 and len(_lines(out, "val_cosine")) == 1, ran.err
        seen[name.name] = _lines(out, "identity")[-1]
    assert seen["recognizer.onnx"] == pytest.approx(seen["recognizer"], abs=1e-4)
