"""Number formats and memory layout of training.

Weights stay float32; bf16 and fp16 are autocast, fp16 with a scaled loss.
"""

from __future__ import annotations

from typing import Literal

import torch

from facesyn_cli.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Return the memory format of a network with convolutions.

    Channels-last on CUDA, where tensor cores read it without a copy; unchanged elsewhere. On a CPU oneDNN crashes in
    channels-last convolutions of few channels.
    """
    return torch.channels_last if device.type == "cuda" else torch.preserve_format
