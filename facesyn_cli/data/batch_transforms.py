"""Random changes of a batch of images on its device: the batched form of the transforms in `transforms.py`.

Images are (B, H, W, 3) uint8 RGB before and after. Parameters are drawn on the host, one set for each image. Results
equal those of PIL except for its rounding to whole gray levels between the two directions of a resize: at most 1 gray
level for a crop, 0 for the others up to the rounding of one float32 product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 as PIL computes it, parts of 65536


def on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of host values on a device; the host does not wait for the device."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def crop_and_resize(images: Tensor, rectangles: Sequence[tuple[int, int, int, int]], size: int) -> Tensor:
    """Cut a rectangle out of each image and enlarge it bilinearly; pixels beyond its border do not contribute.

    Args:
        images: The images.
        rectangles: (top, left, height, width) of each, in pixels; none is larger than `size`, since the filter is not
            widened for shrinking.
        size: Side of the results.
    """
    height, width = images.shape[1:3]
    top, left, h, w = on_device(rectangles, torch.float32, images.device)[:, :, None].unbind(1)
    place = (torch.arange(size, device=images.device) + 0.5) / size
    y = top + torch.minimum((place * h - 0.5).clamp(min=0), h - 1)  # (B, size), pixel centers are whole numbers
    x = left + torch.minimum((place * w - 0.5).clamp(min=0), w - 1)
    grid = torch.stack(
        [
            (2 * x / max(width - 1, 1) - 1)[:, None, :].expand(-1, size, -1),
            (2 * y / max(height - 1, 1) - 1)[:, :, None].expand(-1, -1, size),
        ],
        dim=-1,
    )
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    resized = F.grid_sample(pixels, grid, "bilinear", align_corners=True)
    return (resized + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def erase(images: Tensor, rectangles: Sequence[tuple[int, int, int, int]], fill: int) -> Tensor:
    """Fill a rectangle (top, left, height, width) of each image with a gray level."""
    top, left, h, w = on_device(rectangles, torch.int64, images.device)[:, :, None].unbind(1)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[1:3])
    is_inside = ((y >= top) & (y < top + h))[:, :, None] & ((x >= left) & (x < left + w))[:, None, :]
    return torch.where(is_inside[..., None], fill, images)


def enhance(images: Tensor, steps: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """Scale brightness (0), contrast (1) and saturation (2) of each image, as PIL's ImageEnhance.

    Args:
        images: The images.
        steps: For each image as many (what, factor) as for the others, in order.
    """
    kinds = on_device([[kind for kind, _ in own] for own in steps], torch.int64, images.device)
    factors = on_device([[factor for _, factor in own] for own in steps], torch.float32, images.device)
    luma = torch.tensor(_LUMA, dtype=torch.int32).to(images.device, non_blocking=True)
    for place in range(kinds.shape[1]):
        kind, factor = (values[:, place, None, None, None] for values in (kinds, factors))
        gray = ((images.to(torch.int32) * luma).sum(-1, keepdim=True) + 0x8000) >> 16     # (B, H, W, 1)
        count = gray[0].numel()
        mean = (2 * gray.sum((1, 2, 3), keepdim=True) + count) // (2 * count)             # (B, 1, 1, 1)
        other = torch.where(kind == 2, gray, mean * (kind == 1)).to(torch.float32)
        mixed = other + factor * (images.to(torch.float32) - other)
        images = mixed.clamp(0, 255).to(torch.uint8)                                      # truncated, as in PIL
    return images
