"""A disk without space: tensor files appear whole or not at all, and one line says why."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import SafetensorError

from facesyn_cli.artifacts import weights
from facesyn_cli.artifacts.weights import write_tensors, write_torch
from facesyn_cli.errors import UserError
from facesyn_cli.training.checkpoint import save_checkpoint

TENSORS = {"a": torch.ones(3)}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch):
    """Both libraries fail as they do on a full disk."""

    def rust(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def torch_writer(value, file):
        try:
            raise OSError(28, os.strerror(28))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(weights, "save_file", rust)
    monkeypatch.setattr(torch, "save", torch_writer)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_tensors(folder / "x", TENSORS),
        lambda folder: write_torch(folder / "x", TENSORS),
        lambda folder: save_checkpoint(folder / "checkpoints", 3, {"model": TENSORS}, {}),
    ],
    ids=["safetensors", "torch", "checkpoint"],
)
def test_no_space_is_one_line_and_nothing_stays(full_disk, tmp_path, write):
    with pytest.raises(UserError, match="no space left while writing"):
        write(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name != "checkpoints"]


def test_what_is_written_is_read_back(tmp_path):
    write_torch(tmp_path / "x.pth", TENSORS)
    assert torch.equal(torch.load(tmp_path / "x.pth", weights_only=True)["a"], TENSORS["a"])
