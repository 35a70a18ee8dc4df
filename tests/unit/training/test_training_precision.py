"""Memory layout of networks in training, by device and width."""

from __future__ import annotations

import torch
from torch import nn

from facesyn_cli.training.bn_groups import ImageGroup
from facesyn_cli.training.group_passes import GroupPasses
from facesyn_cli.training.precision import backbone_layout, convolution_layout


def backbone(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.PReLU(width), nn.Conv2d(width, 16, 3), nn.Flatten(),
        nn.Linear(16 * 16, 8),
    )


def test_convolutions_are_channels_last_on_cuda_and_wide_ones_of_a_backbone_on_a_cpu_too() -> None:
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert convolution_layout(torch.device("cuda", 1)) is torch.channels_last
    assert convolution_layout(cpu) is convolution_layout(mps) is torch.contiguous_format
    assert backbone_layout(torch.device("cuda", 1), backbone(4)) is torch.channels_last
    assert backbone_layout(cpu, backbone(16)) is torch.channels_last
    assert backbone_layout(cpu, backbone(15)) is backbone_layout(mps, backbone(16)) is torch.contiguous_format
    assert backbone_layout(cpu, nn.Linear(2, 2)) is torch.contiguous_format


def test_layout_changes_no_embedding_and_no_gradient() -> None:
    pixels_u8 = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = backbone(16).to(memory_format=layout).train()
        seen = []
        network[0].register_forward_pre_hook(lambda layer, inputs, seen=seen: seen.append(inputs[0]))
        embeddings, = GroupPasses(network, 1).embed([ImageGroup(0, pixels_u8)], "fp32", 0, 0)
        assert seen[0].is_contiguous(memory_format=torch.channels_last), "pixels of a wide backbone on a CPU"
        embeddings.square().sum().backward()
        found.append([embeddings.detach(), *(p.grad for p in network.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * a.abs().max().item())
