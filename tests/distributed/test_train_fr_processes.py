"""train-fr in two processes trains what one process trains, and resumes: bit for bit, or on another number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Ran, finish, spawn
from tiny_fr import train_arguments, write_faces

from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.models.convert.tface_head import find_files, read_head

pytestmark = pytest.mark.dist

# four groups a step, two for each of two processes; dropout, transforms and validation are on
MORE = ("batch_size=16", "validation_fraction=0.4", "seed=1", "checkpoint_every=1", "optimizer.lr=0.01", "head.scale=8")
# a step that changes nothing a float32 can show
STILL = ("optimizer={name: sgd, lr: 1.0e-12, momentum: 0, weight_decay: 0}",)
TOLERANCE = 1e-3  # of a tensor's largest value (or 1e-4): sums over groups are rounded in another order


def _difference(first: Path, second: Path) -> float:
    largest = 0.0
    for name in ("model.safetensors", "head.safetensors"):
        a, b = read_tensors(first / name), read_tensors(second / name)
        assert a.keys() == b.keys()
        for key in a:
            scale = a[key].double().abs().max().clamp(min=1e-4)
            largest = max(largest, ((a[key].double() - b[key].double()).abs().max() / scale).item())
    return largest


def _launch(*arguments: str) -> Ran:
    """Run the command in two processes."""
    return finish(spawn(*arguments, processes=2))


def _train_both(faces: Path, alone: Path, together: Path, *more: str) -> None:
    ran = finish(spawn(*train_arguments(faces, alone, *more)))
    assert ran.code == 0, ran.err
    assert "on each of 1 processes" in ran.err
    ran = _launch(*train_arguments(faces, together, *more), "--json")
    assert ran.code == 0, ran.err
    assert ran.err.count("on each of 2 processes") == 1, ran.err
    assert json.loads(ran.out)["epochs"] == 3  # one document: only the first process prints


def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together, grown = tmp_path / "alone", tmp_path / "together", tmp_path / "grown"
    _train_both(faces, alone, together, *MORE)
    assert _difference(alone, together) < TOLERANCE
    for first, second in zip(_validations(alone), _validations(together), strict=True):
        assert first == pytest.approx(second, abs=0.06)
    for epochs in (2, 3):
        ran = _launch(*train_arguments(faces, grown, *MORE, epochs=epochs))
        assert ran.code == 0, ran.err
    assert _difference(together, grown) == 0
    elastic = tmp_path / "elastic"
    for epochs, processes in ((1, 2), (2, 1), (3, 2)):
        ran = finish(spawn(*train_arguments(faces, elastic, *MORE, epochs=epochs), processes=processes))
        assert ran.code == 0, ran.err
    assert 0 < _difference(together, elastic) < TOLERANCE


def test_curricularface_sees_the_mean_of_all_processes(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together = tmp_path / "alone", tmp_path / "together"
    _train_both(faces, alone, together, *MORE, "head.name=curricularface")
    assert _difference(alone, together) < TOLERANCE
    t = [read_tensors(out / "head.safetensors")["t"].item() for out in (alone, together)]
    assert t[0] == pytest.approx(t[1], abs=1e-6) and abs(t[0]) > 1e-4


def test_global_norms_make_groups_of_all_processes_one(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    alone, together = tmp_path / "alone", tmp_path / "together"
    _train_both(faces, alone, together, *MORE, "backbone.dropout=0", "sync_batchnorm=true", "transforms=[]")
    assert _difference(alone, together) < TOLERANCE


def _train(faces: Path, out: Path, *more: str, processes: int = 1, **options: int) -> None:
    ran = finish(spawn(*train_arguments(faces, out, *MORE, *more, **options), processes=processes))
    assert ran.code == 0, ran.err


SHARDED = "classifier.sharded=true"


def test_a_training_resumes_on_any_number_of_processes_and_with_the_classifier_whole_or_sharded(tmp_path: Path):
    """A whole classifier in one process; sharded over 2, 1 and 2; whole, sharded and whole: the same weights."""
    faces = write_faces(tmp_path / "faces")
    alone, elastic, turned = tmp_path / "alone", tmp_path / "elastic", tmp_path / "turned"
    _train(faces, alone)
    for epochs, processes in ((1, 2), (2, 1), (3, 2)):
        _train(faces, elastic, SHARDED, processes=processes, epochs=epochs)
    for epochs, more in ((1, ()), (2, (SHARDED,)), (3, ())):
        _train(faces, turned, *more, processes=2, epochs=epochs)
    assert _difference(alone, elastic) < TOLERANCE and _difference(alone, turned) < TOLERANCE
    for out in (elastic, turned):
        for name in ("head", "optimizer"):
            written = read_tensors(out / "checkpoints" / _newest(out) / f"{name}.safetensors")
            expected = read_tensors(alone / "checkpoints" / _newest(alone) / f"{name}.safetensors")
            assert {key: value.shape for key, value in written.items()} == {k: v.shape for k, v in expected.items()}
    first, second = (json.loads((out / "metrics.jsonl").read_text().splitlines()[0]) for out in (alone, elastic))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4) and first["top1"] == second["top1"]
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-3)


def test_partial_fc_resumes_exactly_and_on_another_number_of_processes(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    more = ("classifier={sharded: true, sample_rate: 0.7}", "clip=1", "validation_fraction=0", "export_published=true",
            "head.name=curricularface")
    whole, resumed, elastic = tmp_path / "whole", tmp_path / "resumed", tmp_path / "elastic"
    _train(faces, whole, *more, processes=2)
    for epochs in (2, 3):
        _train(faces, resumed, *more, processes=2, epochs=epochs)
    assert _difference(whole, resumed) == 0
    for epochs, processes in ((1, 2), (2, 1), (3, 2)):
        _train(faces, elastic, *more, processes=processes, epochs=epochs)
    assert _difference(whole, elastic) < TOLERANCE
    kernel = read_tensors(whole / "head.safetensors")["kernel"]
    published = read_head(whole / "HEAD_Epoch_3")
    assert len(find_files(whole / "HEAD_Epoch_3")) == 2 and published["kernel"].shape == (32, 6)
    assert torch.equal(published["kernel"], kernel) and published.keys() == {"kernel", "t"}
    start = (f"initial_head={whole / 'HEAD_Epoch_3'}", *STILL)
    _train(faces, tmp_path / "further", *more[:3], "head.name=curricularface", *start, processes=2, epochs=1)
    further = read_tensors(tmp_path / "further" / "head.safetensors")["kernel"]
    torch.testing.assert_close(further, kernel, rtol=0, atol=1e-6)


def _newest(out: Path) -> str:
    return max(path.name for path in (out / "checkpoints").iterdir())


def test_wrong_inputs_are_told_once(tmp_path: Path):
    faces = write_faces(tmp_path / "faces")
    ran = _launch(*train_arguments(faces, tmp_path / "fr", "norm_batch_size=8"))
    assert ran.code != 0
    assert ran.err.count("do not divide over 2 processes; start 1 processes or use batch_size 16") == 1, ran.err
    (faces / "p5" / "2.png").write_bytes(b"no image")  # whichever process meets it, the first one tells
    ran = _launch(*train_arguments(faces, tmp_path / "fr"))
    assert ran.code != 0
    assert ran.err.count("p5/2.png") == 1 and "unreadable" in ran.err, ran.err


def _validations(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["val_held-out_accuracy"] for line in lines if "val_held-out_accuracy" in line]
