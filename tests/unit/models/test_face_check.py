"""The packaged faces: a recognizer tells them apart, random weights and wrong pixels do not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from face_projection import write_projection
from torch import nn

from facesyn_cli.artifacts.starter_files import packaged_folder
from facesyn_cli.models.face_check import MIN_GAP, _faces, face_cosines, warn_if_unusable
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry


class Scaled(nn.Module):
    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels * self.factor)


@pytest.fixture(scope="module")
def recognizer() -> nn.Module:
    """The starter's embedder, a trained network."""
    return load_backbone(packaged_folder() / "embedder").module


def test_faces_of_four_people() -> None:
    faces, person = _faces(112)
    assert faces.shape == (8, 3, 112, 112) and person.tolist() == [k // 2 for k in range(8)]
    assert -1 <= faces.min() < -0.5 and 0.5 < faces.max() <= 1
    assert _faces(64)[0].shape == (8, 3, 64, 64)


def test_a_recognizer_passes_in_silence(recognizer, caplog) -> None:
    found = face_cosines(recognizer, 112)
    assert found.same - found.other > MIN_GAP + 0.15 and found.are_apart
    warn_if_unusable(recognizer, 112, "x")
    assert not caplog.records


def test_other_pixels_and_other_weights_are_warned_of(recognizer, caplog) -> None:
    random = registry.build("backbone", registry.configure("backbone", {"name": "ir-lite"})).eval()
    for network in (Scaled(recognizer, 1 / 127.5), random):
        caplog.clear()
        warn_if_unusable(network, 112, "some.pth")
        assert caplog.text.count("some.pth does not distinguish the packaged faces: mean cosine") == 1
        assert "untrained, or expects pixels in another order or range" in caplog.text


def test_not_a_number_is_warned_of(caplog) -> None:
    warn_if_unusable(Scaled(nn.Flatten(), float("nan")), 112, "x")
    assert "mean cosine nan for the same" in caplog.text


def test_files_made_elsewhere_are_tried_when_loaded_and_our_own_folders_are_not(tmp_path: Path, caplog) -> None:
    random = registry.build("backbone", registry.configure("backbone", {"name": "mobilefacenet"}))
    torch.save(random.state_dict(), tmp_path / "published.pth")
    load_backbone(tmp_path / "published.pth")
    assert "published.pth does not distinguish the packaged faces" in caplog.text
    caplog.clear()
    load_backbone(packaged_folder() / "embedder")
    assert not caplog.records


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_tries(tmp_path: Path, caplog, monkeypatch, rank: str) -> None:
    monkeypatch.setenv("RANK", rank)
    cfg = registry.configure("backbone", {"name": "onnx", "mean": 0, "std": 1})
    with caplog.at_level(logging.WARNING, logger="facesyn"):
        load_backbone(write_projection(tmp_path / "a.onnx"), cfg)
    assert len(caplog.records) == (rank == "0")
    assert ("backbone onnx with mean=127.5 std=127.5 channel_order=rgb gives" in caplog.text) == (rank == "0")
