"""LPIPS: equal to the package lpips, and files that do not make one are refused.

`golden/lpips.npz`: distances of `golden_uniform(1, (2, 3, 112, 112))` to `golden_uniform(2, ...)` by lpips 0.1.4
(`LPIPS(net=...)`, version 0.1), whose weights were `golden_tensor` of torchvision's names, and of the names of its
linear layers without their signs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fill import golden_tensor, golden_uniform, load_golden
from safetensors.torch import save_file
from tolerance import products_of, rounding
from torchvision.models import alexnet, vgg16

from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import perceptual_distance
from facesyn_cli.models.lpips import load_lpips

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
BUILDERS = {"alex": alexnet, "vgg": vgg16}


def write(folder: Path, name: str) -> tuple[Path, Path]:
    """Write the weights of a network as torchvision names them, and its linear layers."""
    with torch.device("meta"):
        shapes = {f"features.{key}": value.shape for key, value in BUILDERS[name]().features.state_dict().items()}
    trunk = {key: golden_tensor(key, tuple(shape)) for key, shape in shapes.items()}
    trunk["classifier.6.bias"] = torch.zeros(1000)
    keys = {f"lin{k}.model.1.weight": (1, channels, 1, 1) for k, channels in enumerate(CHANNELS[name])}
    torch.save(trunk, folder / f"{name}_trunk.pth")
    save_file({key: golden_tensor(key, shape).abs() for key, shape in keys.items()}, folder / f"{name}.safetensors")
    return folder / f"{name}_trunk.pth", folder / f"{name}.safetensors"


@pytest.mark.parametrize("name", CHANNELS)
def test_distances_are_those_of_the_package_lpips(tmp_path, name):
    files = write(tmp_path, name)
    loaded = load_lpips(files)
    assert loaded.name == f"lpips-{name}" and load_lpips(files[::-1]).digest == loaded.digest
    a, b = (golden_uniform(seed, (2, 3, 112, 112)) for seed in (1, 2))
    with torch.inference_mode():
        found = perceptual_distance(loaded.module(a), loaded.module(b), loaded.weights)
    tolerance = rounding(products_of(loaded.module))
    assert found.numpy() == pytest.approx(load_golden("lpips")[name], rel=tolerance)


def test_what_is_refused(tmp_path):
    trunk, linear = write(tmp_path, "alex")
    other = tmp_path / "other.safetensors"
    for files, says in (
        ([trunk], "needs two files.*; 1 given"),
        ([trunk, tmp_path / "none.pth"], "none.pth does not exist"),
        ([trunk, trunk], "needs two files"),
        ([linear, linear], "needs two files"),
    ):
        with pytest.raises(UserError, match=says):
            load_lpips(files)
    save_file({"features.0.weight": torch.zeros(64, 3, 5, 5)}, other)
    with pytest.raises(UserError, match="holds other tensors"):
        load_lpips([other, linear])
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, other)
    with pytest.raises(UserError, match="does not hold the linear layers of vgg.*of another shape"):
        load_lpips([other, linear])
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, other)
    with pytest.raises(UserError, match="looks like torchvision's alexnet, but does not fit"):
        load_lpips([other, linear])
