"""Number formats and memory layout of training.

Weights stay float32; bf16 and fp16 are autocast, fp16 with a scaled loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from facesyn_cli.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WIDE = 16  # output channels of a convolution


def check_precision(precision: str, device_type: str) -> None:
    """Refuse a number format that the device cannot train in.

    Raises:
        UserError: fp16 without a CUDA device; its small gradients need a scaler, which works there only.
    """
    if precision == "fp16" and device_type != "cuda":
        raise UserError(
            f"precision fp16 trains on a CUDA device only, this run is on {device_type}; use fp32 or bf16"
        )


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which networks run; it does nothing for fp32."""
    dtype = DTYPES[precision]
    mixed = dtype is not torch.float32
    return torch.autocast(device.type, dtype if mixed else None, enabled=mixed)


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler that keeps small fp16 gradients above zero; it does nothing for the other formats."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def convolution_layout(device: torch.device) -> torch.memory_format:
    """Return the memory format of a network with convolutions: channels-last on CUDA, for tensor cores."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def backbone_layout(device: torch.device, backbone: nn.Module) -> torch.memory_format:
    """Return the memory format of a recognizer.

    Channels-last on a CPU too, where the backward passes of BatchNorm and PReLU are faster in it; not with convolutions
    of few channels, in which oneDNN was seen to crash.
    """
    widths = [layer.out_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    is_wide = device.type == "cpu" and min(widths, default=0) >= _WIDE
    return torch.channels_last if is_wide else convolution_layout(device)
