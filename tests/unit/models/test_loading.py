"""Loading: files and folders, published and ours, whole and halved, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import diffusers
import pytest
import torch
from fill import fill_state, golden_normal, golden_uniform, skeleton

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder, load_backbone, load_denoiser, open_autoencoder
from facesyn_cli.models.weights_files import is_onnx
from facesyn_cli.plugins import registry

UNET = {"name": "idiff-unet", "in_channels": 4, "channels": 32, "multipliers": (1, 2), "attention": (False, True),
        "num_blocks": 1, "context_size": 8, "context_width": 32}
VQ = {"name": "vq-f4", "channels": 32, "multipliers": (1, 1, 2), "num_blocks": 1, "codebook_size": 16}
TINY = {"name": "ir-tiny", "widths": (8, 16), "blocks": (1, 1), "embedding_size": 16}


def _network(kind: str, settings: dict) -> torch.nn.Module:
    return fill_state(skeleton(kind, **settings))


def _cfg(kind: str, **settings):
    return registry.configure(kind, settings)


def _save(path, module: torch.nn.Module, prefix: str = "") -> str:
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, path)
    return str(path)


def _noise(module: torch.nn.Module) -> torch.Tensor:
    return module(golden_normal(1, (2, 4, 8, 8)), torch.tensor([3, 900]), golden_normal(2, (2, 8)))


@pytest.mark.parametrize(
    "prefix", ["", "eps_model.", "module.eps_model.", "_module.eps_model.", "_module.module.eps_model."]
)
def test_a_checkpoint_loads_under_every_prefix(tmp_path, prefix):
    unet = _network("denoiser", UNET)
    loaded = load_denoiser(_save(tmp_path / "a.ckpt", unet, prefix))
    torch.testing.assert_close(_noise(loaded.module), _noise(unet))
    assert not loaded.module.training
    assert loaded.config == LdmSettings(
        denoiser=_cfg("denoiser", **UNET).model_dump(mode="json"), latent_channels=4, embedding_size=8
    )
    assert loaded.digest == "sha256:" + hashlib.sha256((tmp_path / "a.ckpt").read_bytes()).hexdigest()


def test_a_lightning_checkpoint_and_half_precision(tmp_path):
    unet = _network("denoiser", UNET)
    half = {f"eps_model.{key}": value.half() for key, value in unet.state_dict().items()}
    torch.save({"state_dict": half, "epoch": 3}, tmp_path / "a.ckpt")
    module = load_denoiser(tmp_path / "a.ckpt").module
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(_noise(module), _noise(unet), rtol=0.05, atol=0.02)


def test_our_ldm_folder(tmp_path):
    unet = _network("denoiser", {**UNET, "conditioning": "adagn", "head_channels": 16, "component_dropout": 0.5})
    config = LdmSettings(
        denoiser=unet.cfg.model_dump(mode="json"), latent_channels=4, latent_size=8, latent_mean=[0.0] * 4,
        latent_std=[2.0] * 4, image_size=32, embedding_size=8, num_timesteps=500,
    )
    write_weights(tmp_path, unet.state_dict(), config.model_dump(mode="json"))
    loaded = load_denoiser(tmp_path)
    assert loaded.config == config
    assert loaded.module.cfg == unet.cfg
    torch.testing.assert_close(_noise(loaded.module), _noise(unet))


def test_our_backbone_folder_and_a_published_file(tmp_path):
    backbone = _network("backbone", TINY)
    write_weights(tmp_path / "7-fr", backbone.state_dict(), {"kind": "backbone", "backbone": TINY})
    _save(tmp_path / "a.pth", backbone, "module.")
    pixels = golden_uniform(3, (2, 3, 112, 112))
    for path in (tmp_path / "7-fr", tmp_path / "a.pth"):
        loaded = load_backbone(path)
        assert (loaded.name, loaded.input_size, loaded.module.training) == ("ir-tiny", 112, False)
        torch.testing.assert_close(loaded.module(pixels), backbone(pixels))
    assert loaded.digest.startswith("sha256:")


def test_loading_leaves_torchs_generator_alone(tmp_path):
    path = _save(tmp_path / "a.pth", _network("backbone", TINY))
    before = torch.get_rng_state()
    load_backbone(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_asked_for(tmp_path):
    path = _save(tmp_path / "a.ckpt", _network("denoiser", UNET))
    asked = _cfg("denoiser", name="idiff-unet", component_dropout=0.5, checkpoint_activations=True)
    module = load_denoiser(path, asked).module
    assert (module.cfg.component_dropout, module.checkpoint_activations, module.cfg.in_channels) == (0.5, True, 4)
    with pytest.raises(UserError, match=re.escape("a.ckpt has in_channels 4; 3 was asked for")):
        load_denoiser(path, _cfg("denoiser", name="idiff-unet", in_channels=3))
    path = _save(tmp_path / "a.pth", _network("backbone", TINY))
    with pytest.raises(UserError, match=r"a\.pth is an ir-tiny backbone; backbone ir-50 was asked for"):
        load_backbone(path, _cfg("backbone", name="ir-50"))


@torch.inference_mode()
def test_autoencoder_whole_and_halves(tmp_path):
    vq = _network("autoencoder", VQ)
    whole = _save(tmp_path / "whole.ckpt", vq, "first_stage_model.")
    parts = {
        part: _save(tmp_path / f"first_stage_{part}_state_dict.pt", _network("autoencoder", {**VQ, "part": part}))
        for part in ("encoder", "decoder")
    }
    pixels, z = golden_uniform(4, (1, 3, 16, 16)), golden_normal(5, (1, 3, 4, 4))
    for path in (whole, parts["encoder"], str(tmp_path)):
        encoder = load_autoencoder(path, part="encoder")
        torch.testing.assert_close(encoder.encode(pixels), vq.encode(pixels))
        assert not hasattr(encoder, "decoder")
    for path in (whole, parts["decoder"], str(tmp_path)):
        torch.testing.assert_close(load_autoencoder(path, part="decoder").decode(z), vq.decode(z))
    for path in (whole, str(tmp_path)):
        both = load_autoencoder(path)
        torch.testing.assert_close(both.decode(both.encode(pixels)), vq.decode(vq.encode(pixels)))
    with pytest.raises(UserError, match=r"is the encoder of a vq-f4 autoencoder; its decoder was expected$"):
        load_autoencoder(parts["encoder"], part="decoder")
    with pytest.raises(UserError, match=r"is the decoder of a vq-f4 autoencoder; its encoder was expected too$"):
        load_autoencoder(parts["decoder"])
    plain = load_autoencoder(whole, _cfg("autoencoder", name="vq-f4", quantize=False))
    torch.testing.assert_close(plain.decode(z), vq.decoder(vq.post_quant_conv(z)))


def test_an_autoencoder_is_found_again_by_its_section(tmp_path):
    file = tmp_path / "whole.ckpt"
    _save(file, _network("autoencoder", VQ))
    section = load_autoencoder(file, _cfg("autoencoder", name="vq-f4", quantize=False)).section
    again = open_autoencoder(json.loads(json.dumps(section)), part="decoder")
    assert (again.cfg.quantize, again.cfg.part, again.section["digest"]) == (False, "decoder", section["digest"])
    changed = {key: value + 1 for key, value in _network("autoencoder", VQ).state_dict().items()}
    torch.save(changed, file)
    with pytest.raises(UserError, match="has changed since the LDM was trained"):
        open_autoencoder(section)
    pixels = load_autoencoder(None, _cfg("autoencoder", name="pixels", downscale=2))
    assert open_autoencoder(pixels.section).downscale == 2


def test_a_diffusers_folder(tmp_path):
    torch.manual_seed(0)
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert (loaded.section["name"], loaded.downscale, loaded.training) == ("diffusers", 2, False)
    named = load_autoencoder(None, _cfg("autoencoder", name="diffusers", path=str(tmp_path)))
    assert named.section == loaded.section
    assert open_autoencoder(loaded.section).latent_channels == 4
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="has changed since"):
        open_autoencoder(loaded.section)


@pytest.mark.parametrize(
    ("load", "kind", "settings", "message"),
    [
        (load_backbone, "denoiser", UNET, "is an idiff-unet denoiser (ca); a face recognizer was expected"),
        (load_denoiser, "backbone", TINY, "is an ir-tiny backbone; a denoiser was expected"),
        (load_autoencoder, "backbone", TINY, "is an ir-tiny backbone; an autoencoder was expected"),
        (load_denoiser, "autoencoder", VQ, "is a vq-f4 autoencoder; a denoiser was expected"),
    ],
)
def test_a_network_of_another_kind(tmp_path, load, kind, settings, message):
    path = _save(tmp_path / "a.pt", _network(kind, settings))
    with pytest.raises(UserError, match=re.escape(message)):
        load(path)


def test_folders_of_another_kind(tmp_path):
    write_weights(tmp_path, _network("backbone", TINY).state_dict(), {"kind": "backbone", "backbone": TINY})
    with pytest.raises(UserError, match="holds a face recognizer; a denoiser was expected"):
        load_denoiser(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without config.json"):
        load_backbone(tmp_path / "empty")
    with pytest.raises(UserError, match="expected a weights file, a folder in diffusers format"):
        load_autoencoder(tmp_path / "empty")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds kind UNet2DModel; a face recognizer was expected"):
        load_backbone(tmp_path)


def test_a_folder_whose_config_does_not_fit_its_weights(tmp_path):
    state = _network("backbone", TINY).state_dict()
    write_weights(tmp_path, state, {"kind": "backbone", "backbone": {**TINY, "embedding_size": 8}})
    with pytest.raises(UserError, match=r"does not fit backbone ir-tiny with its settings: 4 of another shape"):
        load_backbone(tmp_path)
    write_weights(tmp_path, state, {"kind": "backbone", "backbone": {**TINY, "widhts": 8}})
    with pytest.raises(UserError, match="backbone ir-tiny: widhts: Extra inputs are not permitted"):
        load_backbone(tmp_path)


def test_weights_that_are_not_finite(tmp_path):
    backbone = _network("backbone", TINY)
    backbone.output_layer[3].bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite, in 1 tensors such as output_layer\.3\.bias"):
        load_backbone(_save(tmp_path / "a.pth", backbone))


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8])
def test_numbers_of_another_sort_are_refused(tmp_path, kind):
    tensors = {key: value.to(kind) if value.is_floating_point() else value
               for key, value in _network("backbone", TINY).state_dict().items()}
    torch.save(tensors, tmp_path / "a.pth")
    name = str(kind).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"a\.pth holds {name} in \d+ tensors such as .*; floating point was expected"):
        load_backbone(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x02}q\x00.", bytes(100)])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    for load in (load_backbone, load_denoiser, load_autoencoder):
        with pytest.raises(UserError, match=r"a\.pth") as error:
            load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_truncated_files(tmp_path, kind):
    path = tmp_path / "a.bin"
    if kind == "torch":
        _save(path, _network("backbone", TINY))
    else:
        write_weights(tmp_path, _network("backbone", TINY).state_dict(), {}, name="a")
        (tmp_path / "a.safetensors").rename(path)
        (tmp_path / "config.json").unlink()
        assert load_backbone(path).name == "ir-tiny"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"a\.bin"):
        load_backbone(path)


def test_nothing_given(tmp_path):
    with pytest.raises(UserError, match="a face recognizer needs a weights file"):
        load_backbone(None)
    with pytest.raises(UserError, match="backbone ir-50 needs a weights file"):
        load_backbone(None, _cfg("backbone", name="ir-50"))
    with pytest.raises(UserError, match="an autoencoder is needed"):
        load_autoencoder(None)
    with pytest.raises(UserError, match="vq-f4 needs a weights file"):
        load_autoencoder(None, _cfg("autoencoder", name="vq-f4"))
    with pytest.raises(UserError, match="pixels takes no weights file"):
        load_autoencoder(tmp_path / "a", _cfg("autoencoder", name="pixels"))
    for load in (load_backbone, load_denoiser, load_autoencoder):
        with pytest.raises(UserError, match="does not exist"):
            load(tmp_path / "missing.pt")


def test_onnx_is_told_by_its_content(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    path = tmp_path / "network.bin"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert onnx.load(str(path)).graph.name == "mean"
    pixels = golden_uniform(6, (2, 3, 112, 112))
    torch.testing.assert_close(load_backbone(path).module(pixels), pixels.mean((2, 3)), rtol=0, atol=1e-6)
    cfg = _cfg("backbone", name="onnx", mean=0.0, std=255.0)
    loaded = load_backbone(path, cfg)
    torch.testing.assert_close(loaded.module(pixels), (pixels.mean((2, 3)) + 1) / 2, rtol=0, atol=1e-5)
    assert load_backbone(None, _cfg("backbone", name="onnx", weights=path)).digest == loaded.digest
    with pytest.raises(UserError, match="is an ONNX network; a denoiser was expected"):
        load_denoiser(path)
    with pytest.raises(UserError, match="is an ONNX network; backbone ir-50 was asked for"):
        load_backbone(path, _cfg("backbone", name="ir-50"))
    safetensors = tmp_path / "a.bin"
    safetensors.write_bytes(b"\x08\x02\0\0\0\0\0\0{" + bytes(600))
    assert not is_onnx(safetensors)


def test_a_skeleton_draws_nothing_and_imports_no_compiler():
    """The meta device initializes through torch's compiler stack, seconds of imports, unless draws are left out."""
    code = """
import sys, torch
from facesyn_cli.models.meta_networks import build_on_meta
from facesyn_cli.plugins import registry
for kind, settings in (("denoiser", {"name": "idiff-unet", "learn_empty_context": True}),
                       ("autoencoder", {"name": "vq-f4"}), ("backbone", {"name": "ir-18"})):
    module = build_on_meta(kind, registry.configure(kind, settings))
    assert all(value.is_meta for value in module.state_dict().values())
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
