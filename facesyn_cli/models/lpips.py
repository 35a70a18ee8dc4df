"""LPIPS, the learned perceptual distance, from weights files of the user; nothing is downloaded.

Zhang et al. 2018, arXiv:1801.03924, Eq. 1, version 0.1: maps of AlexNet or VGG-16 after five of its ReLUs, and a
learned weight per channel. Needs two files: the torchvision weights of the network (`alexnet-owt-*.pth`,
`vgg16-*.pth`), and the linear layers from `weights/v0.1` of the package lpips (`alex.pth`, `vgg.pth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from facesyn_cli.artifacts.digest import file_digest, json_digest
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detect_architecture import check_finite, differences, shapes_of
from facesyn_cli.models.feature_maps import tapped

_INPUT_SIZE = 112
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]: about ImageNet's mean and std
_LINEAR = "lin{}.model.1.weight"
_FILES = ("LPIPS needs two files: torchvision's state dict of alexnet or vgg16, and the linear layers of that network "
          "(lin0.model.1.weight, ...: alex.pth or vgg.pth of the package lpips)")


@dataclass(frozen=True)
class _Trunk:
    name: str
    build: type[nn.Module]
    first: tuple[int, ...]     # shape of its first weight, by which it is recognized
    taps: tuple[int, ...]      # indices of the ReLUs in `features`
    channels: tuple[int, ...]  # of those maps


_TRUNKS = (_Trunk("alex", alexnet, (64, 3, 11, 11), (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
           _Trunk("vgg", vgg16, (64, 3, 3, 3), (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)))


@dataclass(frozen=True)
class LoadedLpips:
    """A distance: `feature_maps.perceptual_distance(module(a), module(b), weights)`."""

    module: nn.Module      # pixels (B, 3, H, W) in [-1, 1] -> maps
    weights: list[Tensor]  # (C_l,) of each map
    name: str              # lpips-alex or lpips-vgg
    digest: str            # of the content of both files
    input_size: int        # side that images are resized to, in pixels


def load_lpips(paths: Sequence[Path]) -> LoadedLpips:
    """Load LPIPS from two files in any order, in eval mode, on the CPU.

    Raises:
        UserError: A file is missing, damaged or of another network, or the two do not match.
    """
    if len(paths) != 2:
        raise UserError(f"{_FILES}; {len(paths)} given")
    found = {path: read_tensors(Path(path)) for path in paths}
    linear = next((path for path, tensors in found.items() if _LINEAR.format(0) in tensors), None)
    file = next((path for path in found if path != linear), None)
    if linear is None or file is None:
        raise UserError(f"{', '.join(map(str, paths))}: {_FILES}")
    first = found[file].get("features.0.weight")
    trunk = next((trunk for trunk in _TRUNKS if first is not None and tuple(first.shape) == trunk.first), None)
    if trunk is None:
        raise UserError(f"{file} holds other tensors ({', '.join(list(found[file])[:2])}, ...); {_FILES}")
    shapes = {_LINEAR.format(k): (torch.Size((1, c, 1, 1)), torch.float32) for k, c in enumerate(trunk.channels)}
    if wrong := differences(shapes, found[linear]):
        raise UserError(f"{linear} does not hold the linear layers of {trunk.name}, the network in {file}: {wrong}")
    with torch.device("meta"):
        network = trunk.build(weights=None)
    expected = shapes_of(network.features.state_dict())
    used = {key.removeprefix("features."): value for key, value in found[file].items()
            if not key.startswith("classifier.")}  # layers after the maps are not used
    if wrong := differences(expected, used):
        raise UserError(f"{file} looks like torchvision's {trunk.build.__name__}, but does not fit: {wrong}")
    tensors = {key: value.to(expected[key][1]) for key, value in used.items()}
    weights = [found[linear][key].float().flatten() for key in shapes]
    check_finite(tensors, file)
    check_finite(found[linear], linear)
    network.features.load_state_dict(tensors, strict=True, assign=True)
    module = LpipsMaps(network.features, trunk.taps).eval().requires_grad_(False)
    digest = json_digest([file_digest(file), file_digest(linear)])
    return LoadedLpips(module, weights, f"lpips-{trunk.name}", digest, _INPUT_SIZE)


class LpipsMaps(nn.Module):
    """Pixels to the feature maps of LPIPS.

    Args:
        layers: Convolutions, ReLUs and pools, `features` of the torchvision network.
        taps: Indices of the layers whose outputs are the maps.

    Shapes: pixels (B, 3, H, W) in [-1, 1] -> list of (B, C_l, H_l, W_l).
    """

    def __init__(self, layers: nn.Sequential, taps: Sequence[int]) -> None:
        super().__init__()
        self.layers, self.taps = layers[: taps[-1] + 1], tuple(taps)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, from fine to coarse."""
        return tapped(self.layers, [self.layers[tap] for tap in self.taps], (pixels - self.shift) / self.scale)
