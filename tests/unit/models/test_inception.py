"""Inception-v3 as a feature space: equal to torchvision's and to pytorch-fid's, and what is refused.

`golden/inception_fid.npz`: 2048 features of `golden_uniform(7, (2, 3, 112, 112))[0]` by pytorch-fid 0.3.0
(`InceptionV3([3])` on images in [0, 1]), whose weights were `golden_tensor` of every name and shape.
"""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from fill import golden_tensor, golden_uniform, load_golden
from safetensors.torch import save_file
from tolerance import products_of, rounding
from torch.nn import functional as F
from torchvision.models import Inception3

from facesyn_cli.errors import UserError
from facesyn_cli.models.inception import InceptionFeatures, PooledBlock, is_torchscript, load_features


def network(classes: int, has_head: bool) -> Inception3:
    with torch.device("meta"):
        return Inception3(num_classes=classes, aux_logits=has_head, init_weights=False)


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, torch.Tensor]]:
    """Golden weights of both networks: 1000 classes with an auxiliary head, 1008 without."""
    made: dict[str, torch.Tensor] = {}
    found = {}
    for classes, has_head in ((1000, True), (1008, False)):
        shapes = {key: value.shape for key, value in network(classes, has_head).state_dict().items()}
        for key, shape in shapes.items():
            if key not in made or made[key].shape != shape:
                kind = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
                made[key] = golden_tensor(key, tuple(shape), kind)
        found[classes] = {key: made[key] for key in shapes}
    return found


def test_features_are_those_of_pytorch_fid(states, tmp_path):
    path = tmp_path / "pt_inception.pth"
    torch.save(states[1008], path)
    loaded = load_features(path)
    assert (loaded.name, loaded.input_size) == ("inception-v3-fid", 112) and "bilinear" in loaded.resize
    with torch.inference_mode():
        features = loaded.module(golden_uniform(7, (2, 3, 112, 112))[:1])
    expected = load_golden("inception_fid")["features"]
    tolerance = rounding(products_of(loaded.module), expected.std())
    np.testing.assert_allclose(features[0].numpy(), expected, rtol=0, atol=tolerance)


def test_features_are_what_torchvision_classifies(states, tmp_path):
    """Without batch counters, as the published file; ImageNet's normalization and transform_input undo each other."""
    path = tmp_path / "inception_v3_google.safetensors"
    save_file({key: value for key, value in states[1000].items() if "num_batches" not in key}, path)
    loaded = load_features(path)
    assert loaded.name == "inception-v3-torchvision"
    theirs = network(1000, True).eval()
    theirs.transform_input = True
    theirs.load_state_dict(states[1000], assign=True)
    pixels = golden_uniform(3, (1, 3, 112, 112))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        gray = F.interpolate((pixels + 1) / 2, (299, 299), mode="bilinear", align_corners=False)
        expected = theirs((gray - mean) / std)
        features = loaded.module(pixels)
        found = F.linear(features, states[1000]["fc.weight"], states[1000]["fc.bias"])
    assert features.shape == (1, 2048)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(products_of(theirs), expected.std()))


def test_pools_of_the_tensorflow_network():
    class Block(torch.nn.Module):
        branch_pool = torch.nn.Identity()

        def _forward(self, x):
            return [x, torch.full_like(x, torch.nan)]

    x = torch.arange(16.0).view(1, 1, 4, 4)
    mean, maximum = (PooledBlock(Block(), takes_maximum)(x)[0, 1] for takes_maximum in (False, True))
    assert mean[0, 0] == (0 + 1 + 4 + 5) / 4 and mean[1, 1] == 5 and mean[0, 1] == (0 + 1 + 2 + 4 + 5 + 6) / 6
    assert maximum[0, 0] == 5 and maximum[3, 3] == 15 and maximum[1, 1] == 10


def test_only_the_fid_network_has_other_pools():
    kinds = [sum(isinstance(part, PooledBlock) for part in InceptionFeatures(network(n, False), is_fid).modules())
             for n, is_fid in ((1000, False), (1008, True))]
    assert kinds == [0, 9]


def test_what_is_refused(states, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_features(tmp_path / "none.pth")
    script = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(script, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"inception/{name}", b"")
    assert is_torchscript(script)
    with pytest.raises(UserError, match="TorchScript archive: code, which is not run; a state dict"):
        load_features(script)
    other = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(1000, 512), "conv1.weight": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="holds other tensors .*torchvision's inception_v3_google"):
        load_features(other)
    names = ("fc.weight", "fc.bias", "Mixed_7c.branch_pool.conv.weight")
    save_file({key: states[1008][key] for key in names}, other)
    with pytest.raises(UserError, match="looks like Inception-v3, but does not fit: .* missing"):
        load_features(other)
    assert not is_torchscript(other)
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pth")
    assert not is_torchscript(tmp_path / "plain.pth")
