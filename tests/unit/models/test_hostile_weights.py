"""Weights of others: a few kB that ask for gigabytes, for a network of 10^5 blocks, or for numbers shown many times."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts import torch_files
from facesyn_cli.artifacts.vector_files import read_vector_file
from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.inspection import inspect
from facesyn_cli.models.loading import load_autoencoder, load_backbone, load_denoiser
from facesyn_cli.models.meta_networks import build_on_meta
from facesyn_cli.plugins import registry

SECONDS = 20  # on a loaded machine; a network of 10^5 blocks takes minutes to build


def refused(read: Callable[[], Any]) -> str:
    """Return the message of the UserError; little time and memory are taken until then."""
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        read()
    seconds, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < SECONDS and peak < 2**27, f"{seconds:.1f} s, {peak} bytes"
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000
    return line


@pytest.mark.parametrize(("change", "says"), [
    ({"blocks": [10**5, 1, 1, 1]}, "more parameters than its"), ({"blocks": [30_000, 1, 1, 1]}, "more parameters"),
    ({"blocks": [10**12, 1, 1, 1]}, "blocks is 1e[+]12"), ({"embedding_size": 10**12}, "embedding_size is 1e[+]12"),
    ({"embedding_size": 60_000}, "does not fit backbone ir-tiny"), ({"widths": [4, 8, 12, 2**63]}, "widths is 9.2"),
    ({"widths": [60_001, 60_002, 60_003, 60_004]}, "does not fit backbone ir-tiny"),
    ({"name": ["ir-tiny"]}, "backbone.name"),
    ({"name": 7}, "backbone.name"), ({"name": None}, "backbone.name"), ({"name": "ir-tinny"}, "did you mean 'ir-tiny'"),
    ({"widths": "wide"}, "widths"), ({"blocks": {"a": 1}}, "blocks"), ({"dropout": float("nan")}, "dropout"),
    ({"embedding_size": True}, "does not fit|embedding_size"), ({"": 1}, "Extra inputs"),
])
def test_config_of_a_network_larger_than_its_file(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = write_recognizer(tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"backbone": {**config["backbone"], **change}}))
    with pytest.raises(UserError, match=says):
        load_backbone(folder)
    refused(lambda: load_backbone(folder))


@pytest.mark.parametrize("config", [
    {"backbone": ["ir-tiny"]}, {"backbone": "ir-tiny"}, {"backbone": {}}, [], 7, {"kind": ["backbone"]},
    {"autoencoder": {"name": "pixels"}, "kind": "autoencoder"}, {"autoencoder": {"name": "vq-f4", "part": ["both"]},
                                                                "kind": "autoencoder"},
    {"kind": "autoencoder", "autoencoder": {"name": "vq-f4", "multipliers": [1] * 10_000}},
], ids=str)
def test_config_of_something_else(tmp_path: Path, config: Any) -> None:
    folder = write_recognizer(tmp_path / "net")
    (folder / "config.json").write_text(json.dumps(config))
    for load in (load_backbone, load_denoiser, load_autoencoder):
        refused(lambda load=load: load(folder))


def test_names_that_promise_many_blocks(tmp_path: Path) -> None:
    """Settings of published files are read off the names of their tensors."""
    tensors = read_tensors(write_recognizer(tmp_path / "net") / "model.safetensors")
    name = next(key for key in tensors if ".0." in key)
    path = tmp_path / "net.safetensors"
    write_tensors(path, {**tensors, name.replace(".0.", ".99999999."): tensors[name]})
    start = time.monotonic()
    for load in (load_backbone, load_denoiser):
        with pytest.raises(UserError):
            load(path)
    assert inspect(path)["kind"] == "unknown" and time.monotonic() - start < 3 * SECONDS


def test_skeleton_stops_at_the_size_of_the_file() -> None:
    cfg = registry.configure("backbone", {"name": "ir-tiny", "widths": [4, 8], "blocks": [1000, 1]})
    with pytest.raises(UserError, match="more parameters than its 50 tensors"):
        build_on_meta("backbone", cfg, 50)
    assert sum(1 for _ in build_on_meta("backbone", cfg).parameters()) > 1000


def compressed(path: Path, content: Any) -> Path:
    """Write a torch file whose members are deflated."""
    whole = io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return path


def test_deflate_bomb_in_a_torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_MAX_GROWTH", 2**20)
    path = compressed(tmp_path / "bomb.pth", {"a": torch.zeros(2**21)})
    assert path.stat().st_size < 2**17
    assert "not compressed" in refused(lambda: read_tensors(path))
    vectors = compressed(tmp_path / "bomb.npy", {"a": torch.zeros(2**21)})
    assert "not compressed" in refused(lambda: read_vector_file(vectors))
    small = compressed(tmp_path / "small.pth", {"a": torch.arange(3.0)})
    assert read_tensors(small)["a"].tolist() == [0, 1, 2], "what grows little is read"


def test_numbers_shown_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_MAX_GROWTH", 2**20)
    path = tmp_path / "net.pth"
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    assert "repeats fewer numbers" in refused(lambda: read_tensors(path))
    shared = torch.zeros(2**16)
    torch.save({str(k): shared for k in range(50)}, path)
    assert "many times" in refused(lambda: read_tensors(path))
    torch.save({"a": shared, "b": shared}, path)
    assert len(read_tensors(path)) == 2, "tied weights are read"
