"""A disk without space: tensor files appear whole or not at all, and one line says why."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import SafetensorError

from facesyn_cli.artifacts import weights
from facesyn_cli.artifacts.atomic_directory import atomic_directory
from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.weights import write_tensors, write_torch
from facesyn_cli.data.append_files import AppendFile
from facesyn_cli.errors import UserError
from facesyn_cli.stages import models_convert as models
from facesyn_cli.training.checkpoint import save_checkpoint
from facesyn_cli.training.metrics_log import MetricsLog

LIMIT = 10_000  # bytes a file may have
TENSORS = {"a": torch.ones(3)}
BIG = {"a": torch.ones(LIMIT)}


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


def _write_pipeline(folder):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )
    with atomic_directory(folder / "x") as made:
        pipeline = DDPMPipeline(unet, DDPMScheduler())
        models._write_ours(models.LoadedNetwork("generator", "", unet, {}, pipeline=pipeline), made, "fp32")


def _write_metrics(folder):
    metrics = MetricsLog(folder / "metrics.jsonl")
    for step in range(LIMIT):
        metrics.add(step, loss=0.1)


def _append(folder):
    file = AppendFile(folder / "spool")
    try:
        file.write(bytes(2 * LIMIT))
        file.sync()
    finally:
        file.close()



@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_tensors(folder / "x", BIG),
        lambda folder: write_torch(folder / "x", BIG),
        lambda folder: save_checkpoint(folder / "checkpoints", 3, {"model": BIG}, {}),
        lambda folder: write_bytes(folder / "x", bytes(2 * LIMIT)),
        _write_pipeline, _write_metrics, _append,
    ],
    ids=["safetensors", "torch", "checkpoint", "bytes", "diffusers", "metrics", "append"],
)
def test_what_the_system_refuses_is_one_line(limited_files, tmp_path, write):
    limited_files(LIMIT)
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path)
    assert all(path.stat().st_size <= LIMIT for path in tmp_path.rglob("*"))
    assert not [path for path in tmp_path.rglob(".tmp-*")]
