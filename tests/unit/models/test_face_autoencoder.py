"""`face-kl` and `face-vq`: shapes, halves, what training gets, and the parts of diffusers they are made of."""

from __future__ import annotations

import pytest
import torch
from fill import fill_state, golden_normal, golden_uniform
from pydantic import ValidationError
from tolerance import products_of, rounding
from torch.distributions import Normal, kl_divergence

from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.errors import UserError
from facesyn_cli.models.face_autoencoder import normal_divergence
from facesyn_cli.models.loading import latents_of, load_autoencoder, open_autoencoder
from facesyn_cli.plugins import registry

TINY = {"patch": 2, "channels": [4, 8], "num_groups": 4, "latent_channels": 3, "smooth": 4}


def config(name: str = "face-kl", **settings):
    return registry.configure("autoencoder", {"name": name, **TINY, **settings})


def build(name: str = "face-kl", **settings):
    return fill_state(registry.build("autoencoder", config(name, **settings)))


def test_divergence_is_that_of_torch_distributions():
    mean, log_variance = golden_normal(1, (2, 3, 4, 4)).double(), golden_normal(2, (2, 3, 4, 4)).double()
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), Normal(torch.zeros(()).double(), 1.0))
    assert torch.allclose(normal_divergence(mean, log_variance), expected.mean(dim=(1, 2, 3)), rtol=1e-12)
    zero = torch.zeros(1, 3, 4, 4)
    assert normal_divergence(zero, zero).item() == 0


@pytest.mark.parametrize("name", ["face-kl", "face-vq"])
@pytest.mark.parametrize(("patch", "channels", "downscale"), [(1, [4], 1), (1, [4, 8], 2), (4, [4], 4), (2, [4, 8], 4)])
def test_shapes_follow_patch_and_levels(name, patch, channels, downscale):
    autoencoder = build(name, patch=patch, channels=channels, attention=True)
    pixels = golden_uniform(1, (2, 3, 16, 16))
    with torch.no_grad():
        latents = autoencoder.encode(pixels)
        made = autoencoder.decode(latents)
    assert autoencoder.downscale == downscale
    assert latents.shape == (2, 3, 16 // downscale, 16 // downscale) and made.shape == pixels.shape


def test_the_plain_network_is_that_of_diffusers():
    from diffusers import AutoencoderKL

    ours = build(patch=1, smooth=0)
    theirs = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[4, 8],
        latent_channels=3, norm_num_groups=4, mid_block_add_attention=False,
    ).eval()
    theirs.load_state_dict({k.replace("decoder.network.", "decoder."): v for k, v in ours.state_dict().items()})
    pixels = golden_uniform(1, (2, 3, 16, 16))
    with torch.no_grad():
        encoded = theirs.encode(pixels).latent_dist
        assert torch.equal(ours.encode(pixels), encoded.mean)
        assert torch.equal(ours.decode(encoded.mean), theirs.decode(encoded.mean).sample)
        noise = golden_normal(2, tuple(encoded.mean.shape))
        made, penalties = ours.training_pass(pixels, noise)
        expected = theirs.decode(encoded.mean + encoded.std * noise).sample
        torch.testing.assert_close(made, expected, rtol=0, atol=rounding(products_of(theirs), expected.std()))
        assert torch.allclose(penalties["kl"], encoded.kl() / encoded.mean[0].numel(), rtol=1e-5)


def test_blocks_of_pixels_become_channels_and_come_back():
    autoencoder = build(patch=2, channels=[4], smooth=0)
    seen = {}
    autoencoder.encoder.register_forward_hook(lambda module, given, output: seen.update(given=given[0]))
    autoencoder.decoder.network.register_forward_hook(lambda module, given, output: seen.update(made=output))
    pixels = golden_uniform(1, (1, 3, 4, 4))
    with torch.no_grad():
        made = autoencoder.decode(autoencoder.encode(pixels))
    assert seen["given"][0, :4, 0, 1].tolist() == pixels[0, 0, :2, 2:].flatten().tolist()
    assert made[0, 0, :2, 2:].flatten().tolist() == seen["made"][0, :4, 0, 1].tolist()


def test_the_convolution_over_the_image_begins_as_nothing():
    torch.manual_seed(0)
    fresh = registry.build("autoencoder", config())
    latents = golden_normal(1, (1, 3, 4, 4))
    with torch.no_grad():
        before = fresh.decode(latents)
        smooth, fresh.decoder.smooth = fresh.decoder.smooth, None
        assert torch.equal(before, fresh.decode(latents))
        fresh.decoder.smooth = smooth
        smooth[-1].weight.normal_()
        assert not torch.equal(before, fresh.decode(latents))
    assert fresh.last_layer() is smooth[-1].weight
    assert build(smooth=0).last_layer().shape == (12, 4, 3, 3)


def test_vq_decodes_the_nearest_codes():
    autoencoder = build("face-vq", codebook_size=5)
    latents = golden_normal(3, (2, 3, 4, 4))
    codes = autoencoder.quantize.embedding.weight
    with torch.no_grad():
        nearest = autoencoder.nearest(latents)
        for batch, row, column in ((0, 0, 0), (1, 2, 3), (0, 3, 1)):
            point = latents[batch, :, row, column]
            expected = codes[((codes - point) ** 2).sum(1).argmin()]
            assert torch.equal(nearest[batch, :, row, column], expected)
        assert torch.equal(autoencoder.decode(latents), autoencoder.decode(nearest))


def test_vq_penalties_are_equation_3_and_gradients_pass_the_codes():
    autoencoder = build("face-vq", codebook_size=5)
    pixels = golden_uniform(1, (2, 3, 8, 8))
    made, penalties = autoencoder.training_pass(pixels, torch.zeros(0))
    with torch.no_grad():
        latents = autoencoder.encode(pixels)
        distance = ((autoencoder.nearest(latents) - latents) ** 2).mean(dim=(1, 2, 3))
        expected = autoencoder.decode(latents)
        # the pass adds z - z, and norms over so few values multiply the rounding of that by about 100
        tolerance = rounding(products_of(autoencoder), expected.std()) + rounding(scale=100 * latents.abs().max())
        torch.testing.assert_close(made, expected, rtol=0, atol=tolerance)
    assert torch.allclose(penalties["codebook"], distance) and torch.allclose(penalties["commitment"], distance)
    codebook, first = autoencoder.quantize.embedding.weight, autoencoder.encoder.conv_in.weight
    gradients = {
        name: torch.autograd.grad(loss.sum(), (codebook, first), retain_graph=True, allow_unused=True)
        for name, loss in {"made": made, **penalties}.items()
    }
    reaches = {name: tuple(g is not None and bool(g.any()) for g in pair) for name, pair in gradients.items()}
    assert reaches == {"made": (False, True), "codebook": (True, False), "commitment": (False, True)}


@pytest.mark.parametrize(("name", "sets"), [("face-kl", 2), ("face-vq", 3)])
def test_latent_side_is_encoder_and_codebook(name, sets):
    autoencoder = build(name)
    owners = {key.split(".")[0] for key, p in autoencoder.named_parameters()
              if any(p is mine for mine in autoencoder.latent_side())}
    assert owners == {"encoder", "quant_conv", "quantize"} - ({"quantize"} if sets == 2 else set())


@pytest.mark.parametrize("name", ["face-kl", "face-vq"])
def test_a_folder_loads_whole_or_in_halves(name, tmp_path):
    autoencoder = build(name)
    section = config(name).model_dump(mode="json")
    write_weights(tmp_path, autoencoder.state_dict(), {"kind": "autoencoder", "autoencoder": section})
    pixels = golden_uniform(1, (1, 3, 8, 8))
    whole, encoder, decoder = (load_autoencoder(tmp_path, part=part) for part in ("both", "encoder", "decoder"))
    with torch.no_grad():
        latents = autoencoder.encode(pixels)
        made = autoencoder.decode(latents)
        assert torch.equal(whole.encode(pixels), latents) and torch.equal(whole.decode(latents), made)
        assert torch.equal(encoder.encode(pixels), latents) and torch.equal(decoder.decode(latents), made)
        again = open_autoencoder(whole.section, part="decoder")
        assert torch.equal(again.decode(latents), made)
        with pytest.raises(UserError, match="only the decoder"):
            decoder.encode(pixels)
        with pytest.raises(UserError, match="only the encoder"):
            encoder.decode(latents)
    assert latents_of(tmp_path) == []


def test_a_lone_decoder_says_so(tmp_path):
    cfg = config().model_copy(update={"part": "decoder"})
    decoder = fill_state(registry.build("autoencoder", cfg))
    write_weights(tmp_path, decoder.state_dict(), {
        "kind": "autoencoder", "autoencoder": cfg.model_dump(mode="json"), "latents_of": ["sha256:1"],
    })
    with torch.no_grad():
        latents = golden_normal(1, (1, 3, 2, 2))
        assert torch.equal(load_autoencoder(tmp_path, part="decoder").decode(latents), decoder.decode(latents))
    with pytest.raises(UserError, match="encoder was expected too"):
        load_autoencoder(tmp_path)
    assert latents_of(tmp_path) == ["sha256:1"]


@pytest.mark.parametrize(("settings", "says"), [
    ({"patch": 3}, "power of two"), ({"channels": []}, "multiples of num_groups"),
    ({"channels": [6]}, "multiples of num_groups"), ({"latent_channels": 0}, "greater than or equal to 1"),
])
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        config(**settings)
