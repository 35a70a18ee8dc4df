"""Lightning checkpoints with their settings and callbacks: tensors are read, nothing is imported or called."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import types
from pathlib import Path

import pytest
import torch

from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Called:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch):
    """Modules called as Lightning's, only while a file is written."""
    kept = {}
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities"):
        kept[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, kept[name])

    def define(module: str, name: str, *bases: type) -> type:
        made = type(name, bases, {"__module__": module})
        setattr(kept[module], name, made)
        return made

    return define


def _content(**more) -> dict:
    return {"epoch": 3, "state_dict": {"model.weight": WEIGHT}, **more}


def _save_and_forget(path: Path, content: dict) -> Path:
    torch.save(content, path)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    return path


def test_settings_and_callbacks_are_passed_over(tmp_path, lightning):
    checkpoint = lightning("pytorch_lightning.callbacks", "ModelCheckpoint")
    attributes = lightning("pytorch_lightning.utilities", "AttributeDict", dict)
    state = checkpoint()
    state.best = "x"
    content = _content(
        callbacks={checkpoint: {"best_model_score": torch.ones(())}, "other": state},
        hyper_parameters=attributes(lr=0.1, widths=[1, 2]),
        hparams=argparse.Namespace(arch="ir_50", root=pathlib.PurePosixPath("data")),
    )
    path = _save_and_forget(tmp_path / "adaface.ckpt", content)
    before = list(torch.serialization.get_safe_globals())
    tensors = read_tensors(path)
    assert tensors.keys() == {"model.weight"} and torch.equal(tensors["model.weight"], WEIGHT)
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_a_call_of_such_a_name_calls_nothing(tmp_path, lightning):
    function = lightning("pytorch_lightning.utilities", "remove_everything")
    path = _save_and_forget(tmp_path / "a.ckpt", _content(hyper_parameters=Called(function, "/")))
    assert read_tensors(path).keys() == {"model.weight"}


@pytest.mark.parametrize("function", [os.system, print, eval, types.SimpleNamespace, torch.load])
def test_anything_else_is_refused(tmp_path, function):
    arguments = () if function is types.SimpleNamespace else (f"echo > {tmp_path / 'ran'}",)
    torch.save(_content(hyper_parameters=Called(function, *arguments)), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt holds more than tensors and is not read, for safety: it refers to "):
        read_tensors(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", [0, 50, 200, 400])
def test_damaged_files_are_refused_in_one_line(tmp_path, lightning, place):
    attributes = lightning("pytorch_lightning.utilities", "AttributeDict", dict)
    path = _save_and_forget(tmp_path / "a.ckpt", _content(hyper_parameters=attributes(lr=0.1)))
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    try:
        read_tensors(path)
    except UserError as error:
        assert "\n" not in str(error) and "a.ckpt" in str(error)
