"""Guided-diffusion checkpoints with golden weights: the published one, and a small one of the same build."""

from __future__ import annotations

from pathlib import Path

import torch
from fill import golden_tensor, load_keys
from torch import Tensor


def published_tensors() -> dict[str, Tensor]:
    """Return the 93,563,910 numbers of `ffhq_10m.pt` with golden values."""
    return {key: golden_tensor(key, shape) for key, shape in load_keys("dcface_stage1_ffhq10m").items()}


def small_tensors(widths: tuple[int, int] = (32, 64), out_channels: int = 6) -> dict[str, Tensor]:
    """Return two levels of one block, attention on the second: images of 32 pixels."""
    first, second = widths
    time = 4 * first
    shapes = {
        "time_embed.0.weight": (time, first), "time_embed.0.bias": (time,),
        "time_embed.2.weight": (time, time), "time_embed.2.bias": (time,),
        "input_blocks.0.0.weight": (first, 3, 3, 3), "input_blocks.0.0.bias": (first,),
        **residual("input_blocks.1.0", first, first, time), **residual("input_blocks.2.0", first, first, time),
        **residual("input_blocks.3.0", first, second, time), **attention("input_blocks.3.1", second),
        **residual("middle_block.0", second, second, time), **attention("middle_block.1", second),
        **residual("middle_block.2", second, second, time),
        **residual("output_blocks.0.0", 2 * second, second, time), **attention("output_blocks.0.1", second),
        **residual("output_blocks.1.0", second + first, second, time), **attention("output_blocks.1.1", second),
        **residual("output_blocks.1.2", second, second, time),
        **residual("output_blocks.2.0", second + first, first, time),
        **residual("output_blocks.3.0", 2 * first, first, time),
        "out.0.weight": (first,), "out.0.bias": (first,),
        "out.2.weight": (out_channels, first, 3, 3), "out.2.bias": (out_channels,),
    }
    return {key: golden_tensor(key, shape) for key, shape in shapes.items()}


def write_small(path: Path) -> Path:
    """Write the small checkpoint as the published one is written."""
    torch.save(small_tensors(), path)
    return path


def residual(name: str, before: int, width: int, time: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "in_layers.0.weight": (before,), "in_layers.0.bias": (before,),
        "in_layers.2.weight": (width, before, 3, 3), "in_layers.2.bias": (width,),
        "emb_layers.1.weight": (2 * width, time), "emb_layers.1.bias": (2 * width,),
        "out_layers.0.weight": (width,), "out_layers.0.bias": (width,),
        "out_layers.3.weight": (width, width, 3, 3), "out_layers.3.bias": (width,),
    }
    if before != width:
        shapes |= {"skip_connection.weight": (width, before, 1, 1), "skip_connection.bias": (width,)}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.norm.weight": (width,), f"{name}.norm.bias": (width,),
        f"{name}.qkv.weight": (3 * width, width, 1), f"{name}.qkv.bias": (3 * width,),
        f"{name}.proj_out.weight": (width, width, 1), f"{name}.proj_out.bias": (width,),
    }
