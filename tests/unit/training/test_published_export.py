"""Exported files have the keys of the published code, in its order: TFace for recognizers, IDiff-Face for LDMs."""

from __future__ import annotations

import pytest
import torch
from fill import load_golden
from tolerance import rounding

from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.idiff_unet import UnetConfig
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry
from facesyn_cli.training.published_export import (
    check_exportable,
    export_ldm,
    export_recognizer,
    published_name,
    schedule_buffers,
)


def test_ir_50_has_the_published_keys_and_shapes(tmp_path, golden):
    backbone = registry.build("backbone", registry.configure("backbone", {"name": "ir-50"}))
    path = export_recognizer(backbone, tmp_path, 40)
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
    tensors = torch.load(export_recognizer(backbone, tmp_path, 1), weights_only=True)
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
    assert torch.equal(load_backbone(export_recognizer(backbone, tmp_path, 1)).module(pixels), backbone(pixels))


def test_export_has_the_published_buffers(tmp_path):
    denoiser = torch.nn.Linear(2, 2)
    schedule = build_schedule()
    path = export_ldm(tmp_path, 12, denoiser.state_dict(), schedule)
    assert path.name == "ema_averaged_model_12.ckpt"
    content = torch.load(path, weights_only=True)
    assert list(content)[-8:] == list(schedule_buffers(schedule))
    expected = load_golden("schedule")
    tolerance = rounding() / float(1 - expected["alpha_bars"][0])  # 1 - alpha_bar loses digits next to 1
    assert set(expected) == set(schedule_buffers(schedule))
    for name, values in expected.items():
        torch.testing.assert_close(content[name], torch.from_numpy(values), rtol=tolerance, atol=0, msg=name)
    with pytest.raises(UserError, match="idiff-unet"):
        check_exportable(UnetConfig(name="other"), "linear", "epsilon", False)
    with pytest.raises(UserError, match="linear"):
        check_exportable(UnetConfig(name="idiff-unet"), "cosine", "epsilon", False)
    with pytest.raises(UserError, match="latent_statistics=identity"):
        check_exportable(UnetConfig(name="idiff-unet"), "linear", "epsilon", True)
    with pytest.raises(UserError, match="prediction epsilon"):
        check_exportable(UnetConfig(name="idiff-unet"), "linear", "v", False)
    check_exportable(UnetConfig(name="idiff-unet"), "linear", "epsilon", False)
