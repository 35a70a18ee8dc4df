"""`facesyn train-fr` on six drawn identities: what it learns, writes, resumes and refuses."""

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_fr import train_arguments, write_faces

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.data.datasets import TrainingFaces
from facesyn_cli.models.convert.tface_head import read_head
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.training.optimization import OptimizerSettings
from facesyn_cli.training.sharded_classifier import classifier_memory


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"))


def _lines(out: Path, figure: str) -> list:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def _header(out: Path) -> dict:
    return json.loads((out / "facesyn.json").read_text())


def _same_weights(first: Path, second: Path) -> bool:
    pairs = [(read_tensors(first / name), read_tensors(second / name)) for name in
             ("model.safetensors", "head.safetensors")]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def test_it_learns_and_writes_what_eval_needs(faces: Path, tmp_path: Path, run_cli):
    more = ("validation_fraction=0.4", "save_epochs=[2]", "export_published=true", "lr_schedule.milestones=[5]",
            "keep_checkpoints=1", "seed=1")
    ran = run_cli(*train_arguments(faces, tmp_path / "fr", *more, epochs=6), "--json")
    assert ran.code == 0, ran.err
    out, summary = tmp_path / "fr", ran.json()
    losses = _lines(out, "loss")
    assert len(losses) == summary["steps"] == 12
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert _lines(out, "lr")[8:] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert summary["identities"] == 3 and summary["images"] == 12  # three of the six are held out
    assert len(_lines(out, "val_held-out_accuracy")) == 6
    assert summary["val_held-out_auc"] == _lines(out, "val_held-out_auc")[-1] > 0.9

    loaded = load_backbone(out)
    assert loaded.name == "ir-tiny" and loaded.input_size == 112
    tensors = read_tensors(out / "model.safetensors")
    published = torch.load(out / "Backbone_Epoch_6_checkpoint.pth", weights_only=True)
    assert published.keys() == tensors.keys() and all(torch.equal(published[k], tensors[k]) for k in tensors)
    early = torch.load(out / "Backbone_Epoch_2_checkpoint.pth", weights_only=True)
    kept = load_backbone(out / "epoch-2").module.state_dict()
    assert all(torch.equal(early[k], kept[k]) for k in kept)
    assert not torch.equal(early["input_layer.0.weight"], tensors["input_layer.0.weight"])
    head = read_tensors(out / "head.safetensors")
    assert head["kernel"].shape == (32, 3)
    assert len(json.loads((out / "identities.json").read_text())) == 3
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000012"]


def test_records_and_folders_train_alike(faces: Path, tmp_path: Path, run_cli):
    """Packed as PNG bytes would be lossless; JPEG records only need to carry the same labels in the same order."""
    work = tmp_path / "w"
    assert run_cli("pack", "--in", faces, "--work", work).code == 0
    arguments = train_arguments(faces, tmp_path / "fr", epochs=1)
    at = arguments.index("--in")
    ran = run_cli(*arguments[:at], *arguments[at + 2:], "--work", work, "--json")  # default input: 6-records
    assert ran.code == 0, ran.err
    assert ran.json()["images"] == 24 and ran.json()["identities"] == 6
    assert json.loads((tmp_path / "fr" / "identities.json").read_text()) == [[1, f"p{i}"] for i in range(6)]


def test_identities_of_two_inputs_stay_distinct_and_weights_count(faces: Path, tmp_path: Path, run_cli):
    other = write_faces(tmp_path / "other", seed=1)
    outs = [tmp_path / name for name in ("half", "plain")]
    for out, suffix in zip(outs, ("=0.5", ""), strict=True):
        ran = run_cli(*train_arguments(faces, out, epochs=1), "--in", f"{other}{suffix}", "--json")
        assert ran.code == 0, ran.err
        assert ran.json()["identities"] == 12 and ran.json()["images"] == 48
    half, plain = (_lines(out, "loss")[0] for out in outs)
    assert half < plain
    assert _header(outs[0])["config"]["identity"]["input_weights"] == [1.0, 0.5]


def test_a_curriculum_shows_the_first_input_first(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    other, out, shown = write_faces(tmp_path / "other", seed=1), tmp_path / "fr", []
    locate = TrainingFaces.locate

    def record(self, epoch, row):
        shown.append(row)
        return locate(self, epoch, row)

    monkeypatch.setattr(TrainingFaces, "locate", record)
    ran = run_cli(*train_arguments(faces, out, epochs=2), "--in", other, "input_starts=[1,2]", "workers=0", "--json")
    assert ran.code == 0 and ran.json()["steps"] == 12, ran.err
    assert len(shown) == 96 and sorted(shown[:48]) == sorted([*range(24)] * 2)
    assert sorted(shown[48:]) == list(range(48))


@pytest.mark.parametrize("head", ["cosface", "curricularface"])
def test_every_head_learns(faces: Path, tmp_path: Path, run_cli, head: str):
    ran = run_cli(*train_arguments(faces, tmp_path / "fr", epochs=5), "--head", head)
    assert ran.code == 0, ran.err
    losses = _lines(tmp_path / "fr", "loss")
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    if head == "curricularface":
        assert read_tensors(tmp_path / "fr" / "head.safetensors")["t"].item() > 0


def test_bfloat16_stays_near_float32(faces: Path, tmp_path: Path, run_cli):
    for precision in ("fp32", "bf16"):
        ran = run_cli(*train_arguments(faces, tmp_path / precision, f"precision={precision}", epochs=1))
        assert ran.code == 0, ran.err
    first, second = (_lines(tmp_path / name, "loss") for name in ("fp32", "bf16"))
    assert first[0] == pytest.approx(second[0], rel=0.02) and first != second
    assert all(v.dtype != torch.bfloat16 for v in read_tensors(tmp_path / "bf16" / "model.safetensors").values())


def test_several_groups_in_a_pass_train_as_one_after_the_other(faces: Path, tmp_path: Path, run_cli):
    more = ("optimizer.lr=0.01", "head.scale=8", "seed=1")
    for name in ("1", "2"):
        ran = run_cli(*train_arguments(faces, tmp_path / name, *more, f"groups_per_pass={name}", epochs=2))
        assert ran.code == 0, ran.err
    assert not _same_weights(tmp_path / "1", tmp_path / "2")  # sums over the images are rounded in another order
    alone, together = (read_tensors(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    for key, value in alone.items():
        scale = value.double().abs().max().clamp(min=1e-4)
        assert (together[key].double() - value.double()).abs().max() < 1e-3 * scale, key


def test_batch_larger_than_the_set_repeats_it(faces: Path, tmp_path: Path, run_cli):
    ran = run_cli(*train_arguments(faces, tmp_path / "fr", "norm_batch_size=32", "batch_size=32", epochs=1))
    assert ran.code == 0, ran.err
    assert "24 images are fewer than batch_size 32" in ran.err


def test_number_of_workers_and_more_epochs_change_nothing_before(faces: Path, tmp_path: Path, run_cli):
    straight, grown = tmp_path / "straight", tmp_path / "grown"
    shared = f"decoded_cache={tmp_path / 'decoded'}"
    assert run_cli(*train_arguments(faces, straight, "workers=3", "decoded=fly")).code == 0
    assert run_cli(*train_arguments(faces, grown, "workers=0", shared, epochs=2)).code == 0
    ran = run_cli(*train_arguments(faces, grown, "workers=0", shared, epochs=3))
    assert ran.code == 0 and "images are decoded once, into a cache of 0.00 GiB" in ran.err
    assert len(list((tmp_path / "decoded").rglob("faces.u8"))) == 1 and not (grown / "decoded").exists()
    assert _same_weights(straight, grown)
    assert _lines(straight, "loss") == _lines(grown, "loss")
    before = (grown / "model.safetensors").stat().st_mtime_ns
    again = run_cli(*train_arguments(faces, grown, "workers=0", epochs=3), "--json")
    assert again.code == 0 and (grown / "model.safetensors").stat().st_mtime_ns == before
    assert _header(straight)["digest"] == _header(grown)["digest"]


def test_it_stops_at_a_signal_and_goes_on_exactly(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run_cli(*train_arguments(faces, straight)).code == 0
    asked = iter([None] * 3 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    ran = run_cli(*train_arguments(faces, stopped))
    assert ran.code == 143, ran.err
    monkeypatch.undo()
    assert max(p.name for p in (stopped / "checkpoints").iterdir()) == "step-00000004"
    ran = run_cli(*train_arguments(faces, stopped))
    assert ran.code == 0 and "resuming from step 4 of 9" in ran.err
    assert _same_weights(straight, stopped) and _lines(straight, "loss") == _lines(stopped, "loss")


def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(faces: Path, tmp_path: Path, run_cli):
    more = ("checkpoint_every=1", "validation_fraction=0.2", "save_epochs=[1,2]", "export_published=true")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_cli(*train_arguments(faces, straight, *more, epochs=4)).code == 0
    generator = random.Random(0)
    for _ in range(3):
        process = spawn(*train_arguments(faces, killed, *more, epochs=4))
        deadline = time.monotonic() + 200
        while not (killed / "checkpoints").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 0.4))
        process.kill()
        finish(process)
    assert run_cli(*train_arguments(faces, killed, *more, epochs=4)).code == 0
    assert _same_weights(straight, killed)
    assert _lines(straight, "loss") == _lines(killed, "loss")
    names = [sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) for out in (straight, killed)]
    assert names[0] == names[1]


def test_dry_run_plans_and_writes_nothing(faces: Path, tmp_path: Path, run_cli):
    ran = run_cli(*train_arguments(faces, tmp_path / "fr"), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = ran.json()["plan"]
    counts = plan["counts"]
    assert (counts["images"], counts["identities"], counts["steps"], counts["steps_per_epoch"]) == (24, 6, 9, 3)
    assert plan["network_evaluations"] == {"backbone": 72} and plan["state"] == "new"
    assert plan["chosen"] == {
        "groups_per_step": 2, "images_per_group": 4, "classes_per_process": 6, "classifier_mib": 0.0,
        "decoded": "cache", "decoded_cache_mib": 0.9,
    }
    assert plan["disk_mib"] > 0.9
    assert plan["inputs"] == {"input-1": str(faces)}
    assert not (tmp_path / "fr").exists()


def test_decay_of_norms_is_the_published_quirk_under_its_own_name(faces: Path, tmp_path: Path, run_cli):
    for value in ("false", "true"):
        more = (f"decay_norms={value}", "optimizer.weight_decay=0.5", "transforms=[]")
        assert run_cli(*train_arguments(faces, tmp_path / value, *more, epochs=1)).code == 0
    free, decayed = (read_tensors(tmp_path / v / "model.safetensors")["body.0.res_layer.0.weight"] for v in
                     ("false", "true"))
    assert decayed.mean() < 0.99 * free.mean()


def test_all_pairs_of_a_folder_are_validated_on_as_eval_does(faces: Path, tmp_path: Path, run_cli):
    out = tmp_path / "fr"
    ran = run_cli(*train_arguments(faces, out, f"validation_folders=[{faces}]", epochs=1))
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in lines if f"val_{faces.name}_eer" in line)
    ran = run_cli("eval", "--weights", out, "--benchmarks", "folder", "--images", faces, "--out", tmp_path / "table",
                  "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    row = ran.json()["rows"][0]
    assert [found[f"val_{faces.name}_{name}"] for name in ("eer", "auc")] == pytest.approx(
        [row["eer"], row["auc"]], abs=1e-3)
    assert (found[f"val_{faces.name}_tar_1e-3"] is None) == (row["tar"]["1e-03"] is None)


WRONG = {
    "no such input": (["--in", "{missing}"], "missing does not exist"),
    "no images": (["--in", "{empty}"], "holds no images"),
    "one identity": (["--in", "{single}"], "at least 2 are needed"),
    "unreadable image": (["--in", "{broken}"], "p0/0.png"),
    "unknown backbone": (["--backbone", "ir-5O"], "did you mean 'ir-50'"),
    "untrainable backbone": (["--backbone", "onnx"], "onnx"),
    "unknown head": (["--head", "arcfaces"], "did you mean 'arcface'"),
    "unknown key": (["optimizer.momentun=0.9"], "momentum"),
    "groups": (["norm_batch_size=3"], "not a multiple of norm_batch_size 3"),
    "weights": (["--in", "{faces}", "--in", "{faces}=-1"], "input_weights must be 0 or more"),
    "too few starts": (["--in", "{faces}", "--in", "{single}", "input_starts=[1]"], "has 1 epochs for 2 inputs"),
    "a late first start": (["input_starts=[2]"], "input_starts must begin with 1"),
    "milestones": (["lr_schedule.milestones=[3,2]"], "rising order"),
    "old name of milestones": (["stages=[3,2]"], "lr_schedule.milestones"),
    "epochs": (["--epochs", "0"], "greater than or equal to 1"),
    "fp16 on CPU": (["precision=fp16"], "CUDA device only"),
    "diverging": (["optimizer.lr=1e30"], "no weights of this or a later step were written"),
    "no such bin": (["validation_bins=[{missing}]"], "missing"),
    "no such folder": (["validation_folders=[{missing}]"], "missing"),
    "one person to validate on": (["validation_folders=[{single}]"], "at least 2 identities, and 2 images of one"),
    "two of one name": (["validation_folders=[{faces},{faces}]"], "two sets to validate on are called"),
    "margin": (["head.margin=2"], "head.margin"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_line(faces: Path, tmp_path: Path, assert_refused, kind: str):
    words, says = WRONG[kind]
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copytree(faces / "p0", tmp_path / "single" / "p0")
    shutil.copytree(faces, tmp_path / "broken")
    (tmp_path / "broken" / "p0" / "0.png").write_bytes(b"not an image")
    places = {"missing": tmp_path / "missing", "empty": empty, "single": tmp_path / "single",
              "broken": tmp_path / "broken", "faces": faces}
    words = [word.format(**places) for word in words]
    arguments = train_arguments(faces, tmp_path / "fr")
    if "--in" in words:
        at = arguments.index("--in")
        del arguments[at:at + 2]
    if "--backbone" in words:
        arguments = [a for a in arguments if not a.startswith("backbone.")]
    assert_refused(*arguments, *words, says=says)


def test_other_settings_and_other_images_are_refused(faces: Path, tmp_path: Path, run_cli, assert_refused):
    mine = tmp_path / "faces"
    shutil.copytree(faces, mine)
    out = tmp_path / "fr"
    assert run_cli(*train_arguments(mine, out, epochs=1)).code == 0
    assert_refused(*train_arguments(mine, out, "optimizer.lr=0.5", epochs=1), says="optimizer.lr 0.02 0.5")
    assert_refused(*train_arguments(mine, out, "batch_size=4", epochs=1), says="batch_size 8 4")
    (mine / "p0" / "0.png").unlink()
    assert_refused(*train_arguments(mine, out, epochs=1), says="input-1 sha256:")


def test_tensorboard_shows_the_figures_of_the_log(faces: Path, tmp_path: Path, run_cli, monkeypatch, assert_refused):
    out = tmp_path / "fr"
    assert run_cli(*train_arguments(faces, out, "tracking=[tensorboard]", epochs=1)).code == 0
    assert run_cli(*train_arguments(faces, out, "tracking.name=tensorboard", epochs=2)).code == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(_lines(out, "loss"))
    assert [event.step for event in events.Scalars("loss")] == _lines(out, "step")
    monkeypatch.setattr("facesyn_cli.training.metrics_log.find_spec", lambda name: None)
    refused = train_arguments(faces, tmp_path / "other", "tracking.name=tensorboard")
    assert_refused(*refused, says='pip install "facesyn[tracking]"')
    assert not (tmp_path / "other").exists()


def test_a_sharded_classifier_in_one_process_is_the_whole_one(faces: Path, tmp_path: Path, run_cli):
    for name, more in (("whole", ()), ("sharded", ("classifier.sharded=true",)), ("all", (
            "classifier={sharded: true, sample_rate: 1}",))):
        ran = run_cli(*train_arguments(faces, tmp_path / name, *more, "export_published=true", epochs=1))
        assert ran.code == 0, ran.err
    whole = read_tensors(tmp_path / "whole" / "head.safetensors")["kernel"]
    for name in ("sharded", "all"):
        found = read_tensors(tmp_path / name / "head.safetensors")["kernel"]
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-3 * whole.abs().max().item())
        assert _header(tmp_path / name)["config"]["identity"] == _header(tmp_path / "whole")["config"]["identity"]
        assert torch.equal(read_head(tmp_path / name / "HEAD_Epoch_1")["kernel"], found)
        assert [p.name for p in (tmp_path / name).glob("HEAD*")] == ["HEAD_Epoch_1_Split_0_checkpoint.pth"]
    assert torch.equal(read_head(tmp_path / "whole" / "HEAD_Epoch_1_checkpoint.pth")["kernel"], whole)


def test_muon_leaves_class_centers_to_adamw_so_that_they_can_be_sharded(
    faces: Path, tmp_path: Path, run_cli, monkeypatch
):
    monkeypatch.setattr("facesyn_cli.training.muon._format", lambda device_type: torch.float32)
    muon = ("optimizer={name: muon, lr: 0.01, adamw_lr: 0.001}", "optimizer.eps=0.001")
    for name, more in (("whole", ()), ("sharded", ("classifier.sharded=true",)), ("all", (
            "classifier={sharded: true, sample_rate: 1}",))):
        for epochs in (1, 2):
            ran = run_cli(*train_arguments(faces, tmp_path / name, *muon, *more, epochs=epochs))
            assert ran.code == 0, ran.err
    whole = read_tensors(tmp_path / "whole" / "head.safetensors")["kernel"]
    for name in ("sharded", "all"):
        found = read_tensors(tmp_path / name / "head.safetensors")["kernel"]
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-3 * whole.abs().max().item())


def test_classes_that_cannot_be_sharded_or_sampled_are_refused(faces: Path, tmp_path: Path, assert_refused):
    arguments = train_arguments(faces, tmp_path / "fr", "--dry-run")
    assert_refused(*arguments, "classifier.sharded=true", "head.name=softmax", says="softmax computes its logits in")
    assert_refused(*arguments, "classifier.sample_rate=0.1", says="sample_rate needs sharded=true")
    assert_refused(*arguments, "classifier={sharded: true, sample_rate: 0}", says="sample_rate")


def test_the_plan_tells_the_memory_of_the_classifier(faces: Path, tmp_path: Path, run_cli, monkeypatch):
    """6 classes of 32 numbers, groups of 4 images, SGD with momentum; 3 classes in each of two processes."""
    def chosen(*more: str) -> dict:
        ran = run_cli(*train_arguments(faces, tmp_path / "fr", *more), "--dry-run", "--json")
        assert ran.code == 0, ran.err
        return ran.json()["plan"]["chosen"]

    assert chosen()["classes_per_process"] == 6
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert chosen()["classes_per_process"] == 6 and chosen("classifier.sharded=true")["classes_per_process"] == 3
    settings = OptimizerSettings(name="sgd", momentum=0.9)
    whole = classifier_memory(1_000_000, 512, 64, 8, settings, False, None)
    sharded = classifier_memory(1_000_000, 512, 64, 8, settings, True, None)
    sampled = classifier_memory(1_000_000, 512, 64, 8, settings, True, 0.1)
    assert whole == {"classes_per_process": 1_000_000, "classifier_mib": round(
        4 * (512 * 5 + 6 * 64) * 1e6 / 2**20, 1)}
    assert sharded == {"classes_per_process": 125_000, "classifier_mib": round(
        4 * (512 * 5 + 6 * 512) * 125_000 / 2**20, 1)}
    assert sampled == {"classes_per_process": 125_000, "classifier_mib": round(
        4 * (512 * (2 + 0.5) + 6 * 51.2) * 125_000 / 2**20, 1)}
