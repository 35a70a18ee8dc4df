"""Autoencoders without checkpoints of ours: diffusers folders made here, and plain pixels."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from fill import golden_uniform
from safetensors.torch import load_file, save_file

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

KL = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2,
      "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
VQ = {**KL, "vq_embed_dim": 3, "num_vq_embeddings": 16}
TINY = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8), "latent_channels": 5,
        "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}


def _open(path):
    return registry.build("autoencoder", registry.configure("autoencoder", {"name": "diffusers", "path": path}))


def _save(folder, kind, settings):
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**settings).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "settings", "channels", "downscale"),
    [("AutoencoderKL", KL, 2, 2), ("VQModel", VQ, 3, 2), ("AutoencoderTiny", TINY, 5, 4)],
)
@torch.inference_mode()
def test_diffusers_autoencoders(tmp_path, kind, settings, channels, downscale):
    model = _save(tmp_path, kind, settings)
    autoencoder = _open(str(tmp_path))
    pixels = golden_uniform(1, (2, 3, 16, 16))
    latents = autoencoder.encode(pixels)
    assert (autoencoder.latent_channels, autoencoder.downscale) == (channels, downscale)
    assert tuple(latents.shape) == (2, channels, 16 // downscale, 16 // downscale)
    encoded = model.encode(pixels)
    expected = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(autoencoder.encode(pixels), latents)                # no sampling
    torch.testing.assert_close(autoencoder.decode(latents), model.decode(expected).sample)
    assert autoencoder.digest() == _open(str(tmp_path)).digest()


def test_tiny_takes_and_gives_minus_one_to_one(tmp_path):
    """Its own network works on [0, 1]; diffusers shifts at both ends, so we must not."""
    model = _save(tmp_path, "AutoencoderTiny", TINY)
    pixels = golden_uniform(2, (1, 3, 8, 8))
    with torch.inference_mode():
        torch.testing.assert_close(_open(str(tmp_path)).encode(pixels), model.encoder.layers((pixels + 1) / 2))


def test_a_pipeline_stands_for_its_autoencoder(tmp_path):
    _save(tmp_path / "vae", "AutoencoderKL", KL)
    (tmp_path / "model_index.json").write_text("{}")
    assert _open(str(tmp_path)).latent_channels == 2


def test_weights_that_do_not_fit_are_refused(tmp_path):
    _save(tmp_path, "AutoencoderKL", KL)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["quant_conv.weight"]
    save_file({**tensors, "extra": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="1 missing keys such as quant_conv.weight; 1 unexpected keys such as extra"):
        _open(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load AutoencoderKL"):
        _open(str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="cannot load AutoencoderKL"):
        _open(str(tmp_path))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="path is not set"):
        _open(None)
    with pytest.raises(UserError, match="no config.json there"):
        _open(str(tmp_path))
    with pytest.raises(UserError, match="no config.json there"):
        _open(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        _open(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds UNet2DModel; expected one of AutoencoderKL"):
        _open(str(tmp_path))


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"neither a local folder nor reachable on the hub \(no network\)$"):
        _open("owner/autoencoder")


def test_pixels_average_blocks_and_come_back():
    autoencoder = registry.build("autoencoder", registry.configure("autoencoder", {"name": "pixels", "downscale": 2}))
    flat = torch.tensor([[-1.0, 0.5]]).repeat_interleave(4, 1).repeat_interleave(4, 0).expand(1, 3, 4, 8)
    latents = autoencoder.encode(flat)
    assert torch.equal(latents[0, 0], torch.tensor([[-1.0, -1.0, 0.5, 0.5]] * 2))
    assert (autoencoder.latent_channels, autoencoder.downscale, len(autoencoder.state_dict())) == (3, 2, 0)
    decoded = autoencoder.decode(latents)
    assert decoded.shape == flat.shape
    torch.testing.assert_close(decoded[..., :3], flat[..., :3])
    torch.testing.assert_close(decoded[0, 0, 0, 3:5], torch.tensor([-0.625, 0.125]))  # a quarter of the way
    with pytest.raises(ValueError, match="divisible by 2"):
        autoencoder.encode(torch.zeros(1, 3, 5, 4))
