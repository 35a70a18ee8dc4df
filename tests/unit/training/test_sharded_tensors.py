"""Columns of a checkpoint's tensors that one process reads."""

from __future__ import annotations

import pytest
import torch

from facesyn_cli.artifacts.weights import write_tensors
from facesyn_cli.distributed import processes
from facesyn_cli.errors import UserError
from facesyn_cli.models.heads.class_range import ClassRange
from facesyn_cli.training.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from facesyn_cli.training.sharded_tensors import join_columns, read_columns

TENSORS = {"kernel": torch.arange(12.0).view(3, 4), "bias": torch.arange(4.0), "step": torch.tensor(7)}


def test_only_the_columns_of_tensors_with_columns_are_cut(tmp_path):
    write_tensors(tmp_path / "head.safetensors", TENSORS)
    part = ClassRange(1, 3, 4)
    found = Checkpoint(tmp_path, 1).tensors("head", lambda group, name: part if group == "head" else None)
    assert found.keys() == TENSORS.keys() and torch.equal(found["kernel"], TENSORS["kernel"][:, 1:3])
    assert torch.equal(found["bias"], TENSORS["bias"]) and found["step"] == 7
    assert torch.equal(Checkpoint(tmp_path, 1).tensors("head", lambda *_: None)["kernel"], TENSORS["kernel"])


def test_a_checkpoint_of_another_number_of_classes_is_refused(tmp_path):
    write_tensors(tmp_path / "head.safetensors", TENSORS)
    checkpoint = Checkpoint(tmp_path, 1)
    with pytest.raises(UserError, match="does not fit this training.*kernel has 4 columns, 5 were expected"):
        with checkpoint.fitting():
            checkpoint.tensors("head", lambda *_: ClassRange(0, 2, 5))
    (tmp_path / "head.safetensors").write_bytes(b"1234567890")
    with pytest.raises(UserError, match="is a damaged safetensors file"):
        read_columns(tmp_path / "head.safetensors", lambda name: None)


def test_one_process_holds_the_whole():
    joined = join_columns({"head": TENSORS, "none": {}}, lambda *_: ClassRange(0, 4, 4), processes("cpu"))
    assert joined == {"head": TENSORS, "none": {}}


def test_state_of_an_optimizer_gets_the_memory_layout_of_its_parameter():
    parameter = torch.nn.Parameter(torch.rand(4, 3).t())
    first, second = torch.optim.SGD([parameter], 0.1, 0.9), torch.optim.SGD([parameter], 0.1, 0.9)
    parameter.sum().backward()
    first.step()
    packed = {name: value.contiguous() for name, value in pack_optimizer(first).items()}
    unpack_optimizer(second, packed)
    (state,) = second.state.values()
    assert state["momentum_buffer"].stride() == parameter.stride() == (1, 3)
    assert torch.equal(state["momentum_buffer"], packed["0.momentum_buffer"])
