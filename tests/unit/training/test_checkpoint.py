"""Checkpoints: every damage is seen, the older one is taken, and what is passed over does not stay."""

from __future__ import annotations

import json
import os

import pytest
import torch
from damage import DAMAGES

from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.training import checkpoint as module
from facesyn_cli.training.checkpoint import latest_checkpoint, save_checkpoint

NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")


def _save(folder, step: int, keep: int = 2):
    tensors = {"model": {"w": torch.full((5,), float(step))}, "optimizer": {"0.m": torch.rand(5)}}
    return save_checkpoint(folder, step, tensors, {"window": [0.1, 3.0], "scaler": {}}, keep)


@pytest.fixture
def latest(tmp_path):
    return lambda: latest_checkpoint(tmp_path, processes("cpu"))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(module.log, "warning", said.append)
    return said


def test_the_newest_one_is_taken_and_two_stay(tmp_path, latest, warnings) -> None:
    assert latest() is None
    for step in (1, 2, 3):
        _save(tmp_path, step)
    assert latest().step == 3 and latest().tensors("model")["w"][0] == 3 and latest().state()["window"] == [0.1, 3.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert not warnings


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_seen_and_the_older_one_taken(tmp_path, latest, warnings, name, damage) -> None:
    older, newer = _save(tmp_path, 5), _save(tmp_path, 10)
    damage(newer / name)
    assert latest().step == 5
    (line,) = warnings
    assert str(newer) in line and name in line and older.name in line
    damage(older / name)
    with pytest.raises(UserError) as refused:
        latest()
    assert f"remove {tmp_path} to train" in str(refused.value) and older.name in str(refused.value)


def test_one_that_was_passed_over_does_not_push_out_whole_ones(tmp_path, latest, warnings) -> None:
    _save(tmp_path, 5)
    DAMAGES["flipped bit"](_save(tmp_path, 10) / "model.safetensors")
    assert latest().step == 5
    _save(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000008"]
    assert latest().step == 8 and len(warnings) == 1


def test_those_without_checksums_are_read(tmp_path, latest) -> None:
    for step in (5, 10):
        path = _save(tmp_path, step) / "state.json"
        state = json.loads(path.read_text())
        path.write_text(json.dumps({key: state[key] for key in state.keys() - {"files", "digest"}}))
    assert latest().step == 10
    DAMAGES["truncated"](tmp_path / "step-00000010" / "model.safetensors")
    assert latest().step == 5


def test_a_kill_while_an_old_one_is_removed_leaves_a_temporary_folder(tmp_path, latest, warnings, monkeypatch) -> None:
    for step in (1, 2):
        _save(tmp_path, step)

    def killed(path, ignore_errors=False) -> None:
        if path.is_dir():
            os.unlink(path / "state.json")
            raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 2)
    assert latest().step == 1 and not warnings
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")] == ["step-00000001"]


def test_another_network_is_told_from_damage(tmp_path, latest) -> None:
    _save(tmp_path, 1)
    with pytest.raises(UserError, match="step-00000001 does not fit this training; remove it"), latest().fitting():
        torch.nn.Linear(2, 2).load_state_dict(latest().tensors("model"))
