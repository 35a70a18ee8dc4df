"""The exported file is what TFace loads strictly: a flat state dict with its keys, in its order."""

from __future__ import annotations

import torch

from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.training.weights_export import export_published, published_name


def test_ir_50_has_the_published_keys_and_shapes(tmp_path, golden):
    backbone = registry.build("backbone", registry.configure("backbone", {"name": "ir-50"}))
    path = export_published(backbone, tmp_path, 40)
    assert path.name == "Backbone_Epoch_40_checkpoint.pth" == published_name(40)
    tensors = torch.load(path, weights_only=True)
    lines = (golden / "keys_ir50.txt").read_text().splitlines()
    listed = [tuple(line.split("\t")) for line in lines if line and not line.startswith("#")]
    found = [(name, str(list(v.shape)), str(v.dtype).removeprefix("torch.")) for name, v in tensors.items()]
    assert sorted(found) == sorted(listed)
    assert len(found) == 467
    for name, value in backbone.state_dict().items():
        assert torch.equal(tensors[name], value)
        assert tensors[name].device.type == "cpu"


def test_a_network_that_takes_bgr_is_written_for_rgb(tmp_path):
    settings = {"name": "ir-tiny", "widths": (4, 8), "blocks": (1, 1), "embedding_size": 8}
    torch.manual_seed(0)
    backbone = registry.build("backbone", registry.configure("backbone", {**settings, "channel_order": "bgr"})).eval()
    tensors = torch.load(export_published(backbone, tmp_path, 1), weights_only=True)
    rgb = registry.build("backbone", registry.configure("backbone", settings)).eval()
    rgb.load_state_dict(tensors)
    pixels = torch.rand(2, 3, 112, 112, dtype=torch.float64)  # the channels are summed in another order
    torch.testing.assert_close(rgb.double()(pixels), backbone.double()(pixels), rtol=0, atol=1e-9)
    assert not torch.equal(tensors["input_layer.0.weight"], backbone.state_dict()["input_layer.0.weight"])


@torch.inference_mode()
def test_a_magface_network_is_written_so_that_it_is_read_as_one(tmp_path):
    settings = {"name": "iresnet", "blocks": (1, 1, 1, 1), "embedding_size": 8, "variant": "magface"}
    torch.manual_seed(0)
    backbone = registry.build("backbone", registry.configure("backbone", settings)).eval()
    pixels = torch.rand(1, 3, 112, 112)
    assert torch.equal(load_backbone(export_published(backbone, tmp_path, 1)).module(pixels), backbone(pixels))
