"""Checkpoints as trainers save them: wrappers around wrappers, dicts in dicts, heads and numbers beside the network."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from fill import fill_state, golden_uniform, skeleton

from facesyn_cli.errors import UserError
from facesyn_cli.models.convert.detect_architecture import detect
from facesyn_cli.models.inspection import inspect
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.plugins import registry

TINY = {"name": "ir-tiny", "widths": (8, 16), "blocks": (1, 1), "embedding_size": 16}
SMALL_IRESNET = {"name": "iresnet", "blocks": (1, 1, 1, 1), "embedding_size": 8}
PIXELS = golden_uniform(3, (2, 3, 112, 112))


@pytest.fixture(scope="module")
def network():
    return fill_state(skeleton("backbone", **TINY))


@pytest.fixture(scope="module")
def iresnet():
    return fill_state(skeleton("backbone", **SMALL_IRESNET))


def _wrapped(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("backbone", {"name": "ir-18", "variant": "curricularface"}),
        ("backbone", {"name": "ir-se-50", "variant": "face-evolve", "embedding_size": 256}),
        ("backbone", {**TINY, "variant": "face-evolve"}),
        ("backbone", {"name": "mbf"}),
        ("backbone", {"name": "mbf-large", "embedding_size": 64}),
        ("backbone", {"name": "mbf", "blocks": (1, 2, 1, 1), "scale": 1}),
        ("backbone", {"name": "mbf", "blocks": (3, 2, 1, 1), "scale": 3}),
    ],
)
def test_settings_follow_from_names_and_shapes(kind, settings):
    state = skeleton(kind, **settings).state_dict()
    found = detect(state, "file")
    assert registry.configure(kind, {"name": found.name, **found.settings}) == registry.configure(kind, settings)
    assert set(found.tensors) == set(state)


def test_bottleneck_networks_have_no_variant():
    with pytest.raises(ValueError, match="bottleneck units, which have no variants"):
        registry.configure("backbone", {"name": "ir-152", "variant": "face-evolve"})


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "net.", "model.net.", "backbone.", "module.backbone.",
     "encoder.", "features.module.", "model._orig_mod.module.encoder."],
)
@torch.inference_mode()
def test_any_sequence_of_wrappers_is_taken_off_and_named(tmp_path, caplog, network, prefix):
    torch.save(_wrapped(network, prefix), tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        loaded = load_backbone(tmp_path / "a.pth")
    assert torch.equal(loaded.module(PIXELS), network(PIXELS))
    assert f"prefix '{prefix}' taken off" in caplog.text
    assert inspect(tmp_path / "a.pth")["prefix"] == prefix


@pytest.mark.parametrize("keys", ["state_dict", "model", "model_state_dict", "net", "net_state_dict", "backbone",
                                  "params", "state_dict_backbone", "content/ema"])
@torch.inference_mode()
def test_the_network_may_lie_in_any_dict(tmp_path, caplog, network, keys):
    content = _wrapped(network, "module.")
    for key in reversed(keys.split("/")):
        content = {key: content}
    content |= {"epoch": np.int64(3), "best": np.float32(0.5), "curve": np.ones(3),
                "state_dict_softmax_fc": {"weight": torch.zeros(5, 16)},
                "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
    torch.save(content, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        loaded = load_backbone(tmp_path / "a.pth")
    assert torch.equal(loaded.module(PIXELS), network(PIXELS))
    assert f"under '{keys}'; prefix 'module.' taken off; left out, as no part of it: 1 (state_dict_softmax_fc)" in (
        caplog.text
    )
    assert (inspect(tmp_path / "a.pth")["place"], inspect(tmp_path / "a.pth")["kind"]) == (keys, "backbone")


@pytest.mark.parametrize("is_zip", [True, False])
def test_numpy_numbers_are_passed_over_in_both_formats_of_torch(tmp_path, network, is_zip):
    content = {"state_dict": network.state_dict(), "epoch": np.int64(3), "accuracy": np.float64(0.9),
               "history": np.arange(4, dtype=">f4")}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    assert load_backbone(tmp_path / "a.pth").name == "ir-tiny"


@pytest.mark.parametrize("head", ["head.weight", "fc.weight", "classifier.0.weight", "kernel", "loss.t"])
def test_a_head_beside_the_network_is_left_out_with_a_word(tmp_path, caplog, network, head):
    torch.save({**network.state_dict(), head: torch.zeros(5, 16)}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        load_backbone(tmp_path / "a.pth")
    assert f"left out, as no part of it: 1 ({head})" in caplog.text
    assert inspect(tmp_path / "a.pth")["left_out"] == [head]


def test_other_tensors_on_the_level_of_the_network_are_refused(tmp_path, network):
    torch.save({**network.state_dict(), "body.9.res_layer.0.bias": torch.zeros(16)}, tmp_path / "a.pth")
    with pytest.raises(UserError):
        load_backbone(tmp_path / "a.pth")
    torch.save({**network.state_dict(), "body.1.res_layer.9.bias": torch.zeros(16)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"does not fit: 1 unexpected \(body\.1\.res_layer\.9\.bias\)"):
        load_backbone(tmp_path / "a.pth")


def test_several_networks_are_refused_and_named(tmp_path, network, iresnet):
    torch.save({"model": network.state_dict(), "ema": iresnet.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"several networks, an ir-tiny .* under 'model' and an iresnet .* under 'ema'"):
        load_backbone(tmp_path / "a.pth")
    torch.save(_wrapped(network, "net.") | _wrapped(network, "encoder."), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"under 'encoder\.' and .* under 'net\.'"):
        load_backbone(tmp_path / "a.pth")
    assert "several networks" in inspect(tmp_path / "a.pth")["nearest"]


@pytest.mark.parametrize("prefix", ["features.module.", "module.features.", "features."])
@torch.inference_mode()
def test_magface_is_told_by_its_wrapper(tmp_path, iresnet, prefix):
    """Its layers see BGR in [0, 1]; the BatchNorms have another eps."""
    content = {"state_dict": _wrapped(iresnet, prefix) | {"module.fc.weight": torch.zeros(8, 5)},
               "epoch": 25, "arch": "iresnet", "best_prec1": np.float64(1.0)}
    torch.save(content, tmp_path / "magface.pth")
    loaded = load_backbone(tmp_path / "magface.pth").module
    layers = fill_state(skeleton("backbone", **SMALL_IRESNET)).double()
    for layer in layers.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eps = 2e-5
    pixels = PIXELS.double()
    assert torch.equal(loaded.double()(pixels), layers((pixels.flip(1) + 1) / 2))
    asked = registry.configure("backbone", {**SMALL_IRESNET, "variant": "magface"})
    torch.save(iresnet.state_dict(), tmp_path / "flat.pth")  # which nothing tells from ElasticFace's
    assert torch.equal(load_backbone(tmp_path / "flat.pth", asked).module.double()(pixels), loaded(pixels))
    assert torch.equal(load_backbone(tmp_path / "flat.pth").module(PIXELS), iresnet(PIXELS))


@pytest.mark.parametrize(("text", "order"), [("name: ir\ncolor_space: 'BGR'\n", "bgr"), ("color_space: RGB", "rgb"),
                                             ("  color_space: BGR # as trained", "bgr"), ("name: ir", "rgb")])
@pytest.mark.parametrize("prefix", ["net.", "model.net."])
@torch.inference_mode()
def test_cvlface_states_its_colors_beside_the_file(tmp_path, caplog, network, iresnet, prefix, text, order):
    (tmp_path / "model.yaml").write_text(text)
    seen = PIXELS.flip(1) if order == "bgr" else PIXELS
    for module in (network, iresnet):
        torch.save(_wrapped(module, prefix), tmp_path / "model.pt")
        assert torch.equal(load_backbone(tmp_path / "model.pt").module(PIXELS), module(seen))
    (tmp_path / "model.yaml").unlink()
    with caplog.at_level(logging.INFO):
        load_backbone(tmp_path / "model.pt")
    assert "(RGB, as CVLface's are where no model.yaml beside the file says otherwise)" in caplog.text
    (tmp_path / "model.yaml").write_text("color_space: hsv\n")
    with pytest.raises(UserError, match="color_space hsv; RGB or BGR was expected"):
        load_backbone(tmp_path / "model.pt")


@torch.inference_mode()
def test_an_ir_network_under_model_alone_has_an_open_channel_order(tmp_path, network):
    """With its head beside it is AdaFace's, which is BGR; without, it may be anybody's."""
    torch.save({"state_dict": _wrapped(network, "model.")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"its channel_order: give backbone\.name=ir-tiny and backbone\.channel_order"):
        load_backbone(tmp_path / "a.ckpt")
    assert inspect(tmp_path / "a.ckpt")["undecided"] == "channel_order"
    for order, seen in (("rgb", PIXELS), ("bgr", PIXELS.flip(1))):
        asked = registry.configure("backbone", {"name": "ir-tiny", "channel_order": order})
        assert torch.equal(load_backbone(tmp_path / "a.ckpt", asked).module(PIXELS), network(seen))
