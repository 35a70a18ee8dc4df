"""Recognizers as others save them, with golden weights: every wrapper, channel order and depth."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from fill import fill_state, golden_uniform, skeleton
from tolerance import products_of, rounding

from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detect_architecture import detect
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry

TINY = {"name": "ir-tiny", "widths": (8, 16), "blocks": (1, 1), "embedding_size": 16}
PIXELS = golden_uniform(3, (2, 3, 112, 112))


def _network(**settings) -> torch.nn.Module:
    return fill_state(skeleton("backbone", **settings))


def _nested(module: torch.nn.Module, prefix: str = "model.") -> dict:
    """What AdaFace's trainer saves: the network beside its head, in a Lightning checkpoint."""
    tensors = {prefix + key: value for key, value in module.state_dict().items()}
    tensors |= {"head.kernel": torch.zeros(16, 5), "head.batch_mean": torch.zeros(1)}
    return {"epoch": 3, "global_step": 10, "state_dict": tensors, "optimizer_states": [{"state": {}}]}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "settings",
    [{"name": "mobilefacenet"}, {"name": "ir-18"}, {"name": "iresnet-18"},
     {"name": "iresnet", "blocks": (1, 2, 1, 1), "embedding_size": 8}],
)
@torch.inference_mode()
def test_flat_state_dicts(tmp_path, settings, prefix):
    module = _network(**settings)
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "a.pth")
    loaded = load_backbone(tmp_path / "a.pth")
    assert (loaded.name, loaded.input_size) == (settings["name"], 112)
    assert torch.equal(loaded.module(PIXELS), module(PIXELS))


@torch.inference_mode()
def test_an_iresnet_of_any_depth_keeps_the_blocks_its_file_shows(tmp_path):
    module = _network(name="iresnet", blocks=(1, 2, 1, 3), embedding_size=8)
    write_weights(tmp_path / "ours", module.state_dict(), {"backbone": {"name": "iresnet", "blocks": [1, 2, 1, 3],
                                                                        "embedding_size": 8}})
    assert torch.equal(load_backbone(tmp_path / "ours").module(PIXELS), module(PIXELS))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=re.escape("is an iresnet backbone (blocks 1, 2, 1, 3); backbone iresnet-18")):
        load_backbone(tmp_path / "a.pth", registry.configure("backbone", {"name": "iresnet-18"}))
    asked = registry.configure("backbone", {"name": "iresnet", "blocks": (1, 1, 1, 1)})
    with pytest.raises(UserError, match=r"has blocks \(1, 2, 1, 3\); \(1, 1, 1, 1\) was asked for"):
        load_backbone(tmp_path / "a.pth", asked)


@pytest.mark.parametrize("settings", [TINY, {"name": "ir-18"}, {"name": "ir-se-18"}])
@torch.inference_mode()
def test_adaface_checkpoints_are_nested_and_bgr(tmp_path, caplog, settings):
    module = _network(**settings)
    torch.save(_nested(module), tmp_path / "adaface.ckpt")
    with caplog.at_level(logging.INFO):
        loaded = load_backbone(tmp_path / "adaface.ckpt")
    assert "its channels are taken as BGR" in caplog.text
    assert loaded.name == settings["name"]
    assert torch.equal(loaded.module(PIXELS), module(PIXELS.flip(1)))
    assert not torch.equal(loaded.module(PIXELS), module(PIXELS))


@torch.inference_mode()
def test_the_channel_order_is_kept_with_the_weights_and_can_be_asked_for(tmp_path):
    module = _network(**TINY)
    torch.save(_nested(module), tmp_path / "a.ckpt")
    asked = registry.configure("backbone", {"name": "ir-tiny", "channel_order": "rgb"})
    assert torch.equal(load_backbone(tmp_path / "a.ckpt", asked).module(PIXELS), module(PIXELS))
    torch.save(module.state_dict(), tmp_path / "flat.pth")
    assert torch.equal(load_backbone(tmp_path / "flat.pth").module(PIXELS), module(PIXELS))
    write_weights(tmp_path / "ours", module.state_dict(), {"backbone": {**TINY, "channel_order": "bgr"}})
    assert torch.equal(load_backbone(tmp_path / "ours").module(PIXELS), module(PIXELS.flip(1)))


def test_a_nested_checkpoint_with_a_tensor_too_few_is_refused(tmp_path):
    content = _nested(_network(**TINY))
    del content["state_dict"]["model.output_layer.3.bias"]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"BGR, but does not fit: 1 missing \(output_layer\.3\.bias"):
        load_backbone(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["ir-152", "ir-se-200"])
def test_bottleneck_networks_are_told_by_names_and_shapes(name):
    tensors = skeleton("backbone", name=name).state_dict()
    found = detect({f"module.{key}": value for key, value in tensors.items()}, "a.pth")
    assert (found.kind, found.name, found.settings) == ("backbone", name, {"embedding_size": 512})
    assert set(found.tensors) == set(tensors)


def test_bottleneck_networks_of_another_depth_are_named_as_not_known():
    tensors = {k: v for k, v in skeleton("backbone", name="ir-152").state_dict().items() if "body.49." not in k}
    with pytest.raises(UserError, match=r"^a\.pth: .* bottleneck blocks \[3, 8, 36, 2\] .* only IR-152 and IR-200"):
        detect(tensors, "a.pth")


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
@torch.inference_mode()
def test_edgeface_is_told_by_its_names(tmp_path, prefix):
    import timm
    torch.manual_seed(0)
    network = timm.create_model("edgenext_xx_small", num_classes=512).eval()
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, tmp_path / "edgeface_xxs.pt")
    loaded = load_backbone(tmp_path / "edgeface_xxs.pt")
    assert (loaded.name, loaded.input_size) == ("timm", 112)
    expected = network(PIXELS)
    tolerance = rounding(products_of(network), expected.std())
    torch.testing.assert_close(loaded.module(PIXELS), expected, rtol=0, atol=tolerance)


@torch.inference_mode()
def test_a_timm_network_is_read_as_the_one_asked_for(tmp_path):
    import timm
    torch.manual_seed(0)
    name = "test_vit"
    network = timm.create_model(name, num_classes=24, img_size=48).eval()
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    settings = {"name": "timm", "model": name, "img_size": 48, "embedding_size": 24}
    loaded = load_backbone(tmp_path / "vit.pth", registry.configure("backbone", settings))
    pixels = golden_uniform(4, (2, 3, 48, 48))
    expected = network(pixels)
    tolerance = rounding(products_of(network), expected.std())
    torch.testing.assert_close(loaded.module(pixels), expected, rtol=0, atol=tolerance)
    torch.save({"model": network.state_dict(), "head": {"weight": torch.zeros(3, 24)}}, tmp_path / "nested.pth")
    nested = load_backbone(tmp_path / "nested.pth", registry.configure("backbone", settings)).module
    assert torch.equal(nested(pixels), loaded.module(pixels))
    write_weights(tmp_path / "ours", loaded.module.state_dict(), {"backbone": settings})
    torch.testing.assert_close(load_backbone(tmp_path / "ours").module(pixels), expected, rtol=0, atol=tolerance)
    with pytest.raises(UserError, match="holds no network known here"):
        load_backbone(tmp_path / "vit.pth")
    with pytest.raises(UserError, match="does not fit backbone timm with its settings"):
        load_backbone(tmp_path / "vit.pth", registry.configure("backbone", {**settings, "embedding_size": 12}))


def test_settings_of_timm_reach_the_network():
    with torch.device("meta"):
        small = _build(model="vit_small_patch16_224", patch_size=8, drop_path=0.1)
    assert small.model.patch_embed.num_patches == 14 * 14 and small.model.embed_dim == 384
    assert small.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    with torch.device("meta"):
        assert _build(model="resnet18", img_size=96)(torch.zeros(2, 3, 96, 96)).shape == (2, 512)
        with pytest.raises(ValueError, match=r"expected pixels \(B, 3, 112, 112\)"):
            _build()(torch.zeros(1, 3, 224, 224))


def test_a_timm_network_learns():
    network = _build(model="test_vit", img_size=32, embedding_size=8).train()
    network(golden_uniform(5, (2, 3, 32, 32))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vit_tiny_patch16_2242"}, "has no network called 'vit_tiny_patch16_2242', did you mean 'vit_tiny"),
        ({"model": "hf_hub:someone/something"}, "has no network called"),
        ({"model": "resnet18", "patch_size": 8}, "resnet18 cannot be built with"),
    ],
)
def test_networks_timm_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        _build(**settings)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r'pip install "facesyn\[timm\]"'):
        _build()


def _build(**settings) -> torch.nn.Module:
    return registry.build("backbone", registry.configure("backbone", {"name": "timm", **settings}))
