"""Feature maps of a network at several depths, and the perceptual distance in them.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924, Eq. 1:

    d(a, b) = sum_l 1 / (H_l W_l) sum_hw | w_l * (a^l_hw - b^l_hw) |^2

where a^l_hw is the feature vector of layer l at position (h, w), normalized to unit length.

LPIPS uses AlexNet or VGG and learned w. With a face recognizer and w = 1 the distance is not calibrated on human
judgements; state this wherever its values are shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.models.ir import IrBackbone
from facesyn_cli.models.iresnet import IresnetBackbone
from facesyn_cli.models.latent_ir import LatentIr
from facesyn_cli.models.mobilefacenet import Mbf, MobileFaceNet
from facesyn_cli.models.onnx_torch import OnnxTorch
from facesyn_cli.models.timm_backbone import TimmBackbone

_EPS = 1e-10  # smallest length that feature vectors are divided by, as in the published code
_MAX_MAPS = 5  # of a timm network; of more (blocks of a transformer), this many are spread over the depth


def has_feature_maps(backbone: nn.Module) -> bool:
    """Return whether `feature_maps` supports a network; ONNX networks only as torch operations."""
    if isinstance(backbone, TimmBackbone):
        return hasattr(backbone.model, "forward_intermediates")
    return isinstance(backbone, (IrBackbone, LatentIr, IresnetBackbone, MobileFaceNet, Mbf, OnnxTorch))


def feature_maps(backbone: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return the maps after the stem and after each stage of a face recognizer, from fine to coarse.

    Differentiable in the pixels and in the parameters. The network should be in eval mode, or the maps depend on the
    other images of the batch.

    Args:
        backbone: A torch backbone: ir, iresnet, mobilefacenet, mbf, most networks of timm, or an ONNX network as torch
            operations (`models/onnx_torch.py`: its last map of every size).
        pixels: (B, 3, input_size, input_size) in [-1, 1].

    Returns:
        Tensors (B, C_l, H_l, W_l).

    Raises:
        UserError: The network is not supported.
    """
    if not has_feature_maps(backbone):
        raise UserError(f"a perceptual distance needs the feature maps of a torch network (ir, iresnet, mobilefacenet, "
                        f"mbf or timm); {_title(backbone)} does not provide them")
    if isinstance(backbone, TimmBackbone):
        return _timm_maps(backbone, pixels)
    return tapped(backbone, stage_ends(backbone), pixels)


def stage_ends(backbone: nn.Module) -> list[nn.Module]:
    """Return the stem and the last module of every stage, whose outputs are the maps, for `tapped`."""
    if isinstance(backbone, OnnxTorch):
        return backbone.taps
    if isinstance(backbone, (IrBackbone, LatentIr)):
        units = list(backbone.body)
        last = [a for a, b in itertools.pairwise(units) if isinstance(b.shortcut_layer, nn.Sequential)]
        return [backbone.input_layer, *last, units[-1]]
    if isinstance(backbone, IresnetBackbone):
        return [backbone.prelu, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    if isinstance(backbone, Mbf):
        return [backbone.layers[number] for number in (1, 3, 5, 7)]
    return [backbone.conv2_dw, backbone.conv_3, backbone.conv_4, backbone.conv_5]


def tapped(network: nn.Module, taps: Sequence[nn.Module], pixels: Tensor) -> list[Tensor]:
    """Run a network once and return the outputs of its modules `taps`, in their order."""
    found: dict[int, Tensor] = {}

    def record(tap: nn.Module, _: tuple, output: Tensor) -> None:
        found[id(tap)] = output

    handles = [tap.register_forward_hook(record) for tap in taps]
    try:
        network(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return [found[id(tap)] for tap in taps]


def perceptual_distance(
    maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Return the distance of B pairs of images, (B,), float32 at least, 0 for equal images; differentiable.

    Args:
        maps_a: Maps of the first images, (B, C_l, H_l, W_l) each.
        maps_b: Maps of the second images, of the same shapes.
        weights: Weight of each channel's squared difference, (C_l,) each: LPIPS's linear layers, w_l^2 of Eq. 1.
            None: 1, so that the distance is at most 4 per map.
    """
    return unit_distance([unit_maps(x) for x in maps_a], [unit_maps(x) for x in maps_b], weights)


def unit_distance(
    maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """Return the `perceptual_distance` of maps that are already normalized by `unit_maps`."""
    total: Tensor | float = 0.0
    for number, (a, b) in enumerate(zip(maps_a, maps_b, strict=True)):
        squares = (a - b).square()                                                 # (B, C, H, W)
        if weights is not None:
            squares = squares * weights[number].to(squares.dtype).view(1, -1, 1, 1)
        total = total + squares.sum(1).mean((1, 2))                                # (B,)
    return torch.as_tensor(total)


def unit_maps(x: Tensor) -> Tensor:
    """Return (B, C, H, W), float32 at least, with unit length over the channels at every position; zero stays zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Like F.normalize, whose division is slower in the backward pass.
    return x * torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=_EPS).reciprocal()


def _timm_maps(backbone: TimmBackbone, pixels: Tensor) -> list[Tensor]:
    """Return the intermediate maps of timm, which arranges the tokens of transformers as a grid."""
    network = backbone.model
    count = len(network.feature_info)
    shown = sorted({round((step + 1) * count / _MAX_MAPS) - 1 for step in range(_MAX_MAPS)} - {-1})
    return network.forward_intermediates(pixels, indices=shown, intermediates_only=True)


def _title(backbone: nn.Module) -> str:
    if isinstance(backbone, TimmBackbone):
        return f"timm's {type(backbone.model).__name__}"
    cfg = getattr(backbone, "cfg", None)
    return f"an {cfg.name.upper()} network" if getattr(cfg, "name", "") == "onnx" else type(backbone).__name__
