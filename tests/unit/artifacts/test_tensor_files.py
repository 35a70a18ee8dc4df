"""Tensor files of tensors that share memory, are parts of others or lie in memory in another order."""

from __future__ import annotations

import torch

from facesyn_cli.artifacts.weights import read_tensors, write_tensors


def test_tensors_that_share_memory_are_written_each(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    tensors = {"a": x, "b": x, "row": x[1], "columns": x[:, 1:3], "turned": x.t(), "empty": x[:0], "number": x[0, 1]}
    write_tensors(tmp_path / "all", tensors)
    found = read_tensors(tmp_path / "all")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    write_tensors(tmp_path / "part", {"row": x[1]})
    assert torch.equal(read_tensors(tmp_path / "part")["row"], x[1]) and (tmp_path / "part").stat().st_size < 128
