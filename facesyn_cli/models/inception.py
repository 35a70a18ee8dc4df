"""Inception-v3 features of images, from a weights file of the user; nothing is downloaded.

Szegedy et al. 2015, arXiv:1512.00567; its pooled 2048 features are the space of the published Frechet distances (Heusel
et al. 2017, arXiv:1706.08500). Two files are supported, distinguished by their shapes:

- `inception_v3_google-*` of torchvision: 1000 classes, an auxiliary head, trained on inputs in [-1, 1] (torchvision's
  `transform_input` only undoes ImageNet's normalization).
- the port of the TensorFlow network of 2015-12-05 that pytorch-fid and torch-fidelity distribute as
  `pt_inception-2015-12-05-*` / `weights-inception-2015-12-05-*`: 1008 classes. Its average pools exclude the
  padding, and the pool of its last block is a max pool. Published FID values are in this space.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3

from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.weights import read_tensors
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detect_architecture import check_finite, differences, fill_counters, shapes_of
from facesyn_cli.untrusted.input_files import input_size

SIZE = 2048
RESIZE = "images at 112 px, then to 299 px, bilinear with half-pixel centers, antialiased when shrinking"
_INPUT_SIZE, _NETWORK_SIZE = 112, 299
_FID_CLASSES = 1008
_NAMES = {1000: "inception-v3-torchvision", _FID_CLASSES: "inception-v3-fid"}
_EXPECTED = ("a state dict of Inception-v3 was expected: torchvision's inception_v3_google-*.pth, or "
             "pt_inception-2015-12-05-*.pth as pytorch-fid and torch-fidelity distribute it")
_LAST_BLOCK = "Mixed_7c"
_POOLED_BLOCKS = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b",
                  _LAST_BLOCK)


@dataclass(frozen=True)
class LoadedFeatures:
    """A feature space: pixels (B, 3, input_size, input_size) in [-1, 1] -> (B, D) features, not normalized."""

    module: nn.Module
    name: str        # of the network
    digest: str      # of the weights file
    input_size: int  # side of the input images, in pixels
    resize: str      # description of the resizing of images


def load_features(path: Path) -> LoadedFeatures:
    """Load Inception-v3 without its heads, in eval mode, on the CPU.

    Raises:
        UserError: Missing, damaged, TorchScript (which is code), or another network.
    """
    path = Path(path)
    input_size(path, expected="a weights file")
    if is_torchscript(path):
        raise UserError(f"{path} is a TorchScript archive: code, which is not run; {_EXPECTED}")
    tensors = read_tensors(path)
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else None
    if classes not in _NAMES or "Mixed_7c.branch_pool.conv.weight" not in tensors:
        raise UserError(f"{path} holds other tensors ({', '.join(list(tensors)[:2])}, ...); {_EXPECTED}")
    has_head = any(key.startswith("AuxLogits.") for key in tensors)
    with torch.device("meta"):
        network = Inception3(num_classes=classes, aux_logits=has_head, init_weights=False)
    expected = shapes_of(network.state_dict())
    complete = fill_counters(tensors, expected)
    if wrong := differences(expected, complete):
        raise UserError(f"{path} looks like Inception-v3, but does not fit: {wrong}")
    check_finite(complete, path)
    complete = {key: value.to(expected[key][1]) for key, value in complete.items()}
    network.load_state_dict(complete, strict=True, assign=True)
    module = InceptionFeatures(network, classes == _FID_CLASSES).eval().requires_grad_(False)
    return LoadedFeatures(module, _NAMES[classes], file_digest(path), _INPUT_SIZE, RESIZE)


def is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of `torch.jit.save`, which contains code."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "constants.pkl" or "code" in Path(name).parts for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


class InceptionFeatures(nn.Module):
    """Pixels to the globally pooled features of Inception-v3.

    Args:
        network: The network of torchvision with its weights; its heads are removed.
        is_fid: The weights are the port of the TensorFlow network, whose pools differ.

    Shapes: pixels (B, 3, 112, 112) in [-1, 1] -> (B, 2048).
    """

    def __init__(self, network: Inception3, is_fid: bool) -> None:
        super().__init__()
        network.fc, network.AuxLogits = nn.Identity(), None
        if is_fid:
            for name in _POOLED_BLOCKS:
                setattr(network, name, PooledBlock(getattr(network, name), takes_maximum=name == _LAST_BLOCK))
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (B, 2048)."""
        size = (_NETWORK_SIZE, _NETWORK_SIZE)
        return self.network(F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True))


class PooledBlock(nn.Module):
    """A block of torchvision's Inception-v3 with the pool of the TensorFlow network before its last branch.

    Args:
        block: The block.
        takes_maximum: 3 x 3 max pool; False: average pool that excludes the padding.

    Shapes: (B, C, H, W) -> (B, C', H, W).
    """

    def __init__(self, block: nn.Module, takes_maximum: bool) -> None:
        super().__init__()
        self.block, self.takes_maximum = block, takes_maximum

    def forward(self, x: Tensor) -> Tensor:
        *branches, _ = self.block._forward(x)
        if self.takes_maximum:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*branches, self.block.branch_pool(pooled)], 1)
