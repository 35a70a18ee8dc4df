"""`facesyn train-fr` that starts from given weights, and with heads that keep or add something of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fill import fill_state, skeleton
from tiny_fr import NUM_IDENTITIES, train_arguments, write_faces

from facesyn_cli.artifacts.weights import read_tensors, write_weights
from facesyn_cli.plugins.builtin import BUILTIN

BACKBONE = {"name": "ir-tiny", "widths": [8, 16], "blocks": [1, 1], "embedding_size": 32}
# a step that changes nothing a float32 can show
STILL = ("optimizer={name: sgd, lr: 1.0e-12, momentum: 0, weight_decay: 0}",)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"))


def _parameters(tensors: dict) -> dict:
    return {key: value for key, value in tensors.items() if "running_" not in key and "num_batches" not in key}


def _write_tface_head(folder: Path, kernel: torch.Tensor) -> Path:
    folder.mkdir()
    for rank, part in enumerate(kernel.split([NUM_IDENTITIES - NUM_IDENTITIES // 2, NUM_IDENTITIES // 2], 1)):
        torch.save({"Syn": {"kernel": part.clone()}}, folder / f"HEAD_Epoch_3_Split_{rank}_checkpoint.pth")
    return folder / "HEAD_Epoch_3"


def test_training_starts_from_the_given_weights(faces: Path, tmp_path: Path, run_cli):
    module = fill_state(skeleton("backbone", **BACKBONE))
    torch.save(module.state_dict(), tmp_path / "Backbone_Epoch_3_checkpoint.pth")
    kernel = torch.randn(32, NUM_IDENTITIES)
    more = (f"initial_backbone={tmp_path / 'Backbone_Epoch_3_checkpoint.pth'}",
            f"initial_head={_write_tface_head(tmp_path / 'heads', kernel)}", "backbone.dropout=0", *STILL)
    arguments = train_arguments(faces, tmp_path / "fr", *more, epochs=1)
    assert run_cli(*arguments, "--dry-run").code == 0
    ran = run_cli(*arguments)
    assert ran.code == 0, ran.err
    trained = _parameters(read_tensors(tmp_path / "fr" / "model.safetensors"))
    for key, value in _parameters(module.state_dict()).items():
        torch.testing.assert_close(trained[key], value, rtol=0, atol=1e-6)
    torch.testing.assert_close(read_tensors(tmp_path / "fr" / "head.safetensors")["kernel"], kernel, rtol=0, atol=1e-6)
    parents = json.loads((tmp_path / "fr" / "facesyn.json").read_text())["parents"]
    assert {"input-1", "initial_backbone", "initial_head"} <= parents.keys()
    assert run_cli(*arguments).code == 0  # finished: nothing to do
    torch.save({"Syn": {"kernel": torch.zeros(32, 3)}}, tmp_path / "heads" / "HEAD_Epoch_3_Split_0_checkpoint.pth")
    changed = run_cli(*arguments)
    assert changed.code == 2 and "initial_head" in changed.err


def test_our_own_folder_and_head_can_be_trained_further(faces: Path, tmp_path: Path, run_cli):
    assert run_cli(*train_arguments(faces, tmp_path / "first", epochs=1)).code == 0
    more = (f"initial_backbone={tmp_path / 'first'}", f"initial_head={tmp_path / 'first' / 'head.safetensors'}", *STILL)
    ran = run_cli(*train_arguments(faces, tmp_path / "second", *more, epochs=1))
    assert ran.code == 0, ran.err
    for name in ("model.safetensors", "head.safetensors"):
        first, second = (_parameters(read_tensors(tmp_path / run / name)) for run in ("first", "second"))
        for key in first:
            torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-6)


def test_bgr_weights_are_turned_round_for_an_rgb_network(faces: Path, tmp_path: Path, run_cli):
    module = fill_state(skeleton("backbone", **BACKBONE))
    write_weights(tmp_path / "bgr", module.state_dict(), {"backbone": {**BACKBONE, "channel_order": "bgr"}})
    more = (f"initial_backbone={tmp_path / 'bgr'}", *STILL)
    ran = run_cli(*train_arguments(faces, tmp_path / "fr", *more, epochs=1))
    assert ran.code == 0, ran.err
    first = read_tensors(tmp_path / "fr" / "model.safetensors")["input_layer.0.weight"]
    torch.testing.assert_close(first, module.state_dict()["input_layer.0.weight"].flip(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["other width", "other classes", "no file", "a backbone as a head"])
def test_weights_that_do_not_fit_are_refused_at_once(faces: Path, tmp_path: Path, assert_refused, case: str):
    module = fill_state(skeleton("backbone", **{**BACKBONE, "embedding_size": 16}))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    torch.save({"Syn": {"kernel": torch.zeros(32, 9)}}, tmp_path / "HEAD_Epoch_1_checkpoint.pth")
    setting, says = {
        "other width": (f"initial_backbone={tmp_path / 'a.pth'}", "embedding_size 16; 32 was asked for"),
        "other classes": (f"initial_head={tmp_path / 'HEAD_Epoch_1'}", "kernel is [32, 9]; [32, 6] was expected"),
        "no file": (f"initial_head={tmp_path / 'HEAD_Epoch_2'}", "does not exist; a classifier was expected"),
        "a backbone as a head": (f"initial_head={tmp_path / 'a.pth'}", "holds several classifiers"),
    }[case]
    assert_refused(*train_arguments(faces, tmp_path / "fr", setting, epochs=1), "--dry-run", says=says)
    assert not (tmp_path / "fr").exists()


@pytest.mark.parametrize("head", BUILTIN["head"])
def test_heads_learn_and_keep_their_state(faces: Path, tmp_path: Path, run_cli, head: str):
    ran = run_cli(*train_arguments(faces, tmp_path / "fr", epochs=4), "--head", head)
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "fr" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    saved = read_tensors(tmp_path / "fr" / "head.safetensors")
    if head == "adaface":
        assert saved["num_observed"].item() == len(losses) == 12 and saved["norm_mean"].item() > 0
