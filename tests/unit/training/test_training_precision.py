"""Memory layout of networks in training, by device."""

from __future__ import annotations

import torch
from torch import nn

from facesyn_cli.training.precision import convolution_layout


def test_convolutions_are_channels_last_on_cuda_alone() -> None:
    assert convolution_layout(torch.device("cuda", 1)) is torch.channels_last
    for name in ("cpu", "mps"):
        weight = nn.Conv2d(8, 4, 3).to(memory_format=convolution_layout(torch.device(name))).weight
        assert weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)
