"""`facesyn train-embedder` on drawn people: what it learns, writes, resumes and refuses."""

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
from tiny_embedder import EMBEDDING_SIZE, train_arguments, write_taught_faces
from tiny_ldm import EMBEDDER, write_embedding_set

from facesyn_cli import signals
from facesyn_cli.artifacts.weights import read_config, read_tensors, write_weights
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught_faces(tmp_path_factory.mktemp("taught"))


def _lines(out: Path, figure: str) -> list:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[figure] for line in lines if figure in line]


def _same_weights(first: Path, second: Path) -> bool:
    a, b = (read_tensors(folder / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_the_teacher_on_people_it_has_not_seen(tmp_path: Path, run_cli):
    taught = write_taught_faces(tmp_path, people=40)
    untrained = run_cli(*train_arguments(taught, tmp_path / "untrained", "optimizer.lr=1e-9", steps=1), "--json").json()
    ran = run_cli(*train_arguments(taught, tmp_path / "out", "save_steps=[5]", steps=24), "--json")
    assert ran.code == 0, ran.err
    summary = ran.json()
    assert summary["images"] == 54 and summary["steps"] == 24  # 13 of 40 people are held out
    assert untrained["val_cosine"] < 0.3
    assert summary["val_cosine"] > 0.6 and summary["loss"] < 0.4
    assert summary["val_rank1"] > untrained["val_rank1"]

    header = json.loads((tmp_path / "out" / "facesyn.json").read_text())
    assert header["kind"] == "Weights" and header["extra"]["distilled_from"] == EMBEDDER
    assert read_config(tmp_path / "out")["distilled_from"] == EMBEDDER
    assert load_backbone(tmp_path / "out").name == "ir-lite"
    assert not _same_weights(tmp_path / "out", tmp_path / "out" / "weights" / "step-00000005")
    embed = ("embed", "--images", taught / "faces", "--weights", tmp_path / "out", "--out", tmp_path / "e")
    ran = run_cli(*embed, "--json")
    assert ran.code == 0 and ran.json()["embeddings"] == 80, ran.err


def test_it_stops_at_a_signal_and_goes_on_exactly(taught: Path, tmp_path: Path, run_cli, monkeypatch):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    more = ("ema.maximum=0.9", "relational_weight=2", "log_every=3", "validate_every=2")
    assert run_cli(*train_arguments(taught, straight, *more)).code == 0
    asked = iter([None] * 3 + [15] * 4)
    monkeypatch.setattr(signals, "received", lambda: next(asked))
    ran = run_cli(*train_arguments(taught, stopped, *more))
    assert ran.code == 143, ran.err
    monkeypatch.undo()
    assert load_backbone(stopped / "weights" / "step-00000004").name == "ir-lite"
    ran = run_cli(*train_arguments(taught, stopped, *more, "workers=0"))
    assert ran.code == 0 and "resuming from step 4 of 7" in ran.err
    assert _same_weights(straight, stopped)
    for figure in ("loss", "cosine", "relational", "val_cosine", "val_rank1"):
        assert _lines(straight, figure) == _lines(stopped, figure)


def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_run(taught: Path, tmp_path: Path, run_cli):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    more = ("checkpoint_every=1", "validate_every=3", "save_steps=[2,6]")
    assert run_cli(*train_arguments(taught, straight, *more, steps=10)).code == 0
    generator, kills = random.Random(0), 0
    while not (killed / "facesyn.json").exists() and kills < 2:
        process = spawn(*train_arguments(taught, killed, *more, steps=10))
        begun = killed / "checkpoints" / f"step-{2 + 3 * kills:08d}"
        while process.poll() is None and not begun.exists():
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        finish(process)
        kills += 1
    assert run_cli(*train_arguments(taught, killed, *more, steps=10)).code == 0
    assert _same_weights(straight, killed)
    assert _same_weights(straight / "weights" / "step-00000006", killed / "weights" / "step-00000006")
    for figure in ("loss", "val_cosine"):
        assert _lines(straight, figure) == _lines(killed, figure)
    headers = [json.loads((out / "facesyn.json").read_text()) for out in (straight, killed)]
    assert headers[0]["extra"] == headers[1]["extra"] and headers[0]["digest"] == headers[1]["digest"]


def test_more_steps_go_on_from_there_unless_the_schedule_ends_with_training(
    taught: Path, tmp_path: Path, run_cli, assert_refused
):
    straight, grown = tmp_path / "straight", tmp_path / "grown"
    more = ("lr_schedule.name=constant", "validation_fraction=0")
    assert run_cli(*train_arguments(taught, straight, *more, steps=4)).code == 0
    for steps in (2, 4):
        ran = run_cli(*train_arguments(taught, grown, *more, steps=steps), "--json")
        assert ran.code == 0 and "val_cosine" not in ran.json(), ran.err
    assert _same_weights(straight, grown)
    before = (grown / "model.safetensors").stat().st_mtime_ns
    assert run_cli(*train_arguments(taught, grown, *more, steps=4)).code == 0
    assert (grown / "model.safetensors").stat().st_mtime_ns == before
    out = tmp_path / "cosine"
    assert run_cli(*train_arguments(taught, out, steps=1)).code == 0
    assert_refused(*train_arguments(taught, out, steps=2), says="was started with steps=1; lr_schedule cosine depends")


def test_half_precision_bfloat16_and_another_network(taught: Path, tmp_path: Path, run_cli):
    plain, half = tmp_path / "plain", tmp_path / "half"
    more = ("precision=bf16", "backbone={name: mobilefacenet, embedding_size: 16}", "batch_size=2", "norm_batch_size=2")
    arguments = [word for word in train_arguments(taught, plain, steps=1) if not word.startswith("backbone.")]
    at = arguments.index("--backbone")
    arguments = [*arguments[:at], *arguments[at + 2:], *more, "validation_fraction=0"]
    assert run_cli(*arguments).code == 0
    again = [str(half) if word == str(plain) else word for word in arguments]
    assert run_cli(*again, "weights_precision=fp16").code == 0
    full, stored = (read_tensors(out / "model.safetensors") for out in (plain, half))
    assert {value.dtype for value in full.values()} == {torch.float32, torch.int64}
    for name, value in full.items():
        assert torch.equal(stored[name], value.half() if value.ndim > 1 else value), name
    assert {v.dtype for v in load_backbone(half).module.state_dict().values()} == {torch.float32, torch.int64}


def test_training_starts_from_given_weights(taught: Path, tmp_path: Path, run_cli):
    first, second = tmp_path / "first", tmp_path / "second"
    more = ("validation_fraction=0", "lr_schedule.name=constant", "lr_schedule.warmup_steps=0")
    assert run_cli(*train_arguments(taught, first, *more, steps=3)).code == 0
    start = ("optimizer.lr=1e-12", f"initial_backbone={first}", "seed=5")
    assert run_cli(*train_arguments(taught, second, *more, *start, steps=1)).code == 0
    a, b = (read_tensors(out / "model.safetensors")["body.0.res_layer.1.weight"] for out in (first, second))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_plan_counts_and_writes_nothing(taught: Path, tmp_path: Path, run_cli):
    ran = run_cli(*train_arguments(taught, tmp_path / "out"), "--dry-run", "--json")
    plan = ran.json()["plan"]
    assert ran.code == 0 and not (tmp_path / "out").exists()
    counts, chosen = plan["counts"], plan["chosen"]
    assert counts["images"] + counts["validation_images"] == 24 and counts["images_without_embedding"] == 0
    assert chosen["teacher"] == EMBEDDER and chosen["groups_per_step"] == 2
    assert plan["network_evaluations"] == {"backbone": 7 * 16} and plan["state"] == "new"


def test_photos_without_an_embedding_are_left_out(taught: Path, tmp_path: Path, run_cli):
    keys = [f"p{person}/0" for person in range(12)]
    some = write_embedding_set(tmp_path / "some", keys, np.random.default_rng(0).standard_normal((12, EMBEDDING_SIZE)))
    ran = run_cli(*train_arguments(taught, tmp_path / "out", "--embeddings", some, "validation_fraction=0", steps=1))
    assert ran.code == 0 and "12 images to train on" in ran.err and "12 have no embedding" in ran.err


WRONG = {
    "no images": (["--images", "{missing}"], "missing does not exist"),
    "no embeddings": (["--embeddings", "{missing}"], "missing does not exist"),
    "images as embeddings": (["--embeddings", "{taught}/faces"], "faces"),
    "other keys": (["--embeddings", "{others}"], "no image of"),
    "another width": (["backbone.embedding_size=8"], "set backbone.embedding_size=16"),
    "unreadable image": (["--images", "{broken}", "validation_fraction=0"], "p3/1.png"),
    "unreadable held-out image": (["--images", "{broken}", "validate_every=1"], "p3/1.png"),
    "all held out": (["validation_fraction=0.99999"], "lower validation_fraction"),
    "unknown backbone": (["--backbone", "ir-lit"], "did you mean 'ir-lite'"),
    "finished network": (["backbone={{name: onnx}}"], "cannot be trained"),
    "unknown key": (["relation_weight=1"], "did you mean 'relational_weight'"),
    "weight": (["relational_weight=-1"], "relational_weight"),
    "groups": (["norm_batch_size=5"], "not a multiple of norm_batch_size 5"),
    "fp16 on CPU": (["precision=fp16"], "CUDA device only"),
    "precision of files": (["weights_precision=bf16"], "weights_precision"),
    "diverging": (["optimizer.lr=1e30", "clip=null"], "training stopped"),
    "initial weights of another width": (["initial_backbone={small}"], "widths"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_line(taught: Path, tmp_path: Path, assert_refused, kind: str):
    words, says = WRONG[kind]
    if kind.startswith("unreadable"):
        shutil.copytree(taught / "faces", tmp_path / "broken")
        (tmp_path / "broken" / "p3" / "1.png").write_bytes(b"not an image")
    write_embedding_set(tmp_path / "others", ["q/0"], np.ones((1, EMBEDDING_SIZE)))
    if kind == "initial weights of another width":
        _write_small(tmp_path / "small")
    places = {name: tmp_path / name for name in ("missing", "others", "broken", "small")}
    words = [word.format(**places, taught=taught) for word in words]
    arguments = train_arguments(taught, tmp_path / "out")
    if words[0].startswith(("--backbone", "backbone={")):
        at = arguments.index("--backbone")
        del arguments[at:at + 2]
        arguments = [word for word in arguments if not word.startswith("backbone.")]
    assert_refused(*arguments, *words, says=says)


def test_other_settings_and_other_inputs_are_refused(taught: Path, tmp_path: Path, run_cli, assert_refused):
    out = tmp_path / "out"
    assert run_cli(*train_arguments(taught, out, steps=1)).code == 0
    assert_refused(*train_arguments(taught, out, "optimizer.lr=0.5", steps=1), says="optimizer.lr 0.01 0.5")
    other = write_taught_faces(tmp_path / "other", people=3)
    assert_refused(*train_arguments(other, out, steps=1), says="input images")


def _write_small(folder: Path) -> None:
    settings = {"name": "ir-lite", "widths": [4, 16], "blocks": [1, 1], "embedding_size": EMBEDDING_SIZE}
    network = registry.build("backbone", registry.configure("backbone", settings))
    write_weights(folder, network.state_dict(), {"backbone": settings})
