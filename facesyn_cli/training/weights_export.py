"""Weights of a trained recognizer in the form that TFace reads."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from facesyn_cli.artifacts.weights import write_torch
from facesyn_cli.models.published_state import published_state


def published_name(epoch: int) -> str:
    """Return TFace's name of the backbone's weights after `epoch` (1-based) epochs."""
    return f"Backbone_Epoch_{epoch}_checkpoint.pth"


def export_published(backbone: nn.Module, folder: Path, epoch: int) -> Path:
    """Write the flat state dict of a backbone with `torch.save`, as TFace does.

    Args:
        backbone: The network; its parameter names are written as they are, which for `ir-*` are TFace's. TFace
            reads RGB: a network that takes BGR is turned round.
        folder: Where to write.
        epoch: Number of finished epochs, part of the file name.
    """
    path = folder / published_name(epoch)
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in published_state(backbone).items()}
    write_torch(path, tensors)
    return path
