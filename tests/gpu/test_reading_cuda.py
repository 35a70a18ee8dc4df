"""Faces that are read on the host and changed on a CUDA device are those of a CPU, up to the rounding of crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facesyn_cli.data.datasets import TrainingFaces, WeightedSet
from facesyn_cli.data.pixels import encode_png
from facesyn_cli.data.transforms import compose
from facesyn_cli.plugins.registry import configure
from facesyn_cli.training.batch_loading import load_groups

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
]


class _Set:
    num_classes, labels = 16, np.arange(16)

    def read(self, index: int) -> bytes:
        return encode_png(np.random.default_rng(index).integers(0, 256, (112, 112, 3), dtype=np.uint8))

    def name_of(self, index: int) -> str:
        return f"image {index}"

    def content(self) -> str:
        return "random"


@pytest.mark.parametrize(
    ("names", "gray_levels"), [(("flip", "random-erasing"), 0), (("flip", "random-resized-crop"), 1),
                               (("flip", "low-resolution"), 2),
                               (("photometric",), 2)]
)
def test_groups_on_a_gpu_are_those_of_a_cpu(names: tuple[str, ...], gray_levels: int):
    transform = compose([configure("transform", {"name": name, "p": 0.7}) for name in names])
    faces = TrainingFaces([WeightedSet(_Set())], transform, 3, 112)
    groups = [[(epoch, row) for row in range(16)] for epoch in range(4)]
    on_cpu, on_gpu = (
        list(load_groups(faces, [1.0], iter(groups), 2, torch.device(device))) for device in ("cpu", "cuda")
    )
    for (expected, labels, _), (actual, other_labels, _) in zip(on_cpu, on_gpu, strict=True):
        assert actual.device.type == "cuda" and torch.equal(labels, other_labels) and other_labels.is_pinned()
        assert (actual.cpu().int() - expected.int()).abs().max() <= gray_levels
