"""Parts that the face recognizers (backbones) share: input size, the check of it, and initialization."""

from __future__ import annotations

from torch import Tensor, nn

INPUT_SIZE = 112  # side of the images, in pixels
ALIGNED_INPUT = "RGB 112 x 112 aligned to the ArcFace template, (x - 127.5) / 127.5"


def check_pixels(pixels: Tensor, side: int = INPUT_SIZE) -> None:
    """Check the shape of a batch of face images.

    Raises:
        ValueError: The pixels are not (B, 3, side, side).
    """
    if tuple(pixels.shape[1:]) != (3, side, side):
        raise ValueError(f"expected pixels (B, 3, {side}, {side}), got {tuple(pixels.shape)}")


def initialize(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions and linear layers, biases 0, as in TFace; norms keep 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
