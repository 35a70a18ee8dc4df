"""Feature maps of decoders: which they are, that they carry gradients, and that nothing behind them is computed."""

from __future__ import annotations

import diffusers
import pytest
import torch
from fill import golden_uniform
from torch import Tensor, nn

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry

BLOCKS = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2,
          "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
DIFFUSERS = {
    "AutoencoderKL": BLOCKS, "VQModel": {**BLOCKS, "num_vq_embeddings": 16},
    "AutoencoderTiny": {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3,
                        "latent_channels": 2, "num_encoder_blocks": (1,) * 3, "num_decoder_blocks": (1,) * 3},
}
OURS = {
    "vq-f4": {"channels": 32, "multipliers": [1, 1, 2], "num_blocks": 1, "latent_channels": 2, "codebook_size": 16},
    "kl-f4": {"channels": 32, "multipliers": [1, 1, 2], "num_blocks": 1, "latent_channels": 2},
    "face-kl": {"patch": 1, "channels": [16, 16, 16], "latent_channels": 2},
    "face-vq": {"patch": 1, "channels": [16, 16, 16], "latent_channels": 2, "codebook_size": 16},
}


def build(name: str, folder) -> nn.Module:
    torch.manual_seed(0)
    settings = OURS.get(name)
    if settings is None:
        getattr(diffusers, name)(**DIFFUSERS[name]).save_pretrained(folder)
        name, settings = "diffusers", {"path": str(folder)}
    return registry.build("autoencoder", registry.configure("autoencoder", {"name": name, **settings})).eval()


def expected(name: str, autoencoder: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last maps of the two coarsest resolutions, by the layers themselves."""
    if name == "AutoencoderTiny":
        layers = autoencoder.model.decoder.layers
        ends = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Upsample)]
        first = layers[: ends[0]](3 * torch.tanh(latents / 3))
        return first, layers[ends[0] : ends[1]](first)
    if name in OURS and name.endswith("f4"):
        decoder, up = autoencoder.decoder, autoencoder.decoder.up
        first = up[2].block[1](up[2].block[0](decoder.mid(decoder.conv_in(autoencoder.post_quant_conv(latents)))))
        return first, up[1].block[1](up[1].block[0](up[2].upsample(first)))
    network = autoencoder.decoder.network if name in OURS else autoencoder.model.decoder
    before = autoencoder.post_quant_conv if name in OURS else autoencoder.model.post_quant_conv
    first = network.mid_block(network.conv_in(before(latents)))
    for resnet in network.up_blocks[0].resnets:
        first = resnet(first, None)
    second = network.up_blocks[0].upsamplers[0](first)
    for resnet in network.up_blocks[1].resnets:
        second = resnet(second, None)
    return first, second


@pytest.mark.parametrize("name", [*DIFFUSERS, *OURS])
def test_maps_are_the_last_ones_of_each_resolution(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    autoencoder = build(name, tmp_path)
    latents = 2 * golden_uniform(1, (2, 2, 4, 4)).requires_grad_()
    maps = autoencoder.decoder_maps(latents, 2)
    assert [x.shape[-1] for x in maps] == [4, 8]
    for found, wanted in zip(maps, expected(name, autoencoder, latents), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(maps[1].square().sum(), latents)[0].abs().min() > 0, "latents are not quantized"
    assert len(autoencoder.decoder_maps(latents, 9)) == 2
    ran: list[nn.Module] = []
    for module in autoencoder.modules():
        module.register_forward_hook(lambda module, *_: ran.append(module))
    autoencoder.decoder_maps(latents, 1)
    early = len(ran)
    autoencoder.decode(latents)
    assert 0 < early < 0.7 * (len(ran) - early), "what comes after is not computed, and no hook is left behind"


@pytest.mark.parametrize("name", OURS)
def test_an_encoder_alone_is_refused(name: str):
    half = {"name": name, **OURS[name], "part": "encoder"}
    autoencoder = registry.build("autoencoder", registry.configure("autoencoder", half))
    with pytest.raises(UserError, match="only the encoder was given"):
        autoencoder.decoder_maps(torch.zeros(1, 2, 4, 4), 1)


def test_a_decoder_with_spatial_norms_is_refused(tmp_path):
    settings = {**DIFFUSERS["VQModel"], "block_out_channels": (32,) * 3, "norm_num_groups": 32}
    diffusers.VQModel(**settings, norm_type="spatial").save_pretrained(tmp_path)
    autoencoder = registry.build("autoencoder", registry.configure("autoencoder", {"name": "diffusers",
                                                                                   "path": str(tmp_path)}))
    with pytest.raises(UserError, match="with spatial norms are not supported"):
        autoencoder.decoder_maps(torch.zeros(1, 2, 4, 4), 1)
