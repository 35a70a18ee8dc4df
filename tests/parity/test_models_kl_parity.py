"""KL autoencoders against diffusers: its own reader of these files, its own network."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from fill import fill_state, golden_normal, golden_uniform, skeleton
from tolerance import products_of, rounding

from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder

SIZES = {"kl-f4": ((1, 2, 2), 3), "kl-f8": ((1, 1, 2, 2), 4)}


def build(name: str, part: str = "both"):
    multipliers, _ = SIZES[name]
    return fill_state(skeleton("autoencoder", name=name, channels=32, multipliers=multipliers, num_blocks=1, part=part))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@torch.inference_mode()
def test_file_gives_what_diffusers_makes_of_it(tmp_path, name, prefix):
    multipliers, channels = SIZES[name]
    tensors = {prefix + key: value for key, value in build(name).state_dict().items()}
    rest = {f"{prefix}loss.logvar": torch.zeros(())}
    if prefix:
        rest |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(9)}
    torch.save({"state_dict": tensors | rest}, tmp_path / "model.ckpt")
    ours = load_autoencoder(tmp_path / "model.ckpt")
    assert (ours.section["name"], ours.latent_channels, ours.downscale) == (name, channels, 2 ** (len(multipliers) - 1))

    levels = len(multipliers)
    theirs = AutoencoderKL(
        block_out_channels=[32 * m for m in multipliers], down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, latent_channels=channels, layers_per_block=1,
    ).eval()
    theirs.load_state_dict(convert_ldm_vae_checkpoint(dict(tensors), theirs.config), strict=True)

    pixels = golden_uniform(1, (2, 3, 32, 32))
    expected = theirs.encode(pixels).latent_dist.mean
    latents = ours.encode(pixels)
    tolerance = rounding(products_of(theirs))  # relative to the spread of the output
    torch.testing.assert_close(latents, expected, rtol=0, atol=tolerance * float(expected.std()))
    z = golden_normal(2, tuple(latents.shape))
    expected = theirs.decode(z).sample
    torch.testing.assert_close(ours.decode(z), expected, rtol=0, atol=tolerance * float(expected.std()))


@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_halves_do_their_half(tmp_path, name):
    whole = build(name)
    pixels = golden_uniform(1, (1, 3, 32, 32))
    for part in ("encoder", "decoder") if name == "kl-f8" else ("encoder",):
        torch.save(build(name, part).state_dict(), tmp_path / f"{part}.pt")
        half = load_autoencoder(tmp_path / f"{part}.pt", part=part)
        assert half.section["name"] == name
        with pytest.raises(UserError, match="is the"):
            load_autoencoder(tmp_path / f"{part}.pt")
        if part == "encoder":
            assert torch.equal(half.encode(pixels), whole.encode(pixels))
        else:
            assert torch.equal(half.decode(whole.encode(pixels)), whole.decode(whole.encode(pixels)))


def test_a_decoder_that_may_be_a_vq_without_codebook_is_refused(tmp_path):
    torch.save(build("kl-f4", "decoder").state_dict(), tmp_path / "decoder.pt")
    with pytest.raises(UserError, match="no complete network known here|holds no network"):
        load_autoencoder(tmp_path / "decoder.pt", part="decoder")


def test_number_of_parameters_of_the_one_under_stable_diffusion():
    """As many as AutoencoderKL has with the settings of Stable Diffusion 1."""
    theirs = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, layers_per_block=2,
    )
    ours = skeleton("autoencoder", name="kl-f8")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 83_653_863


def test_attention_within_levels_is_refused(tmp_path):
    tensors = build("kl-f8").state_dict() | {"encoder.down.3.attn.0.norm.weight": torch.ones(64)}
    torch.save(tensors, tmp_path / "f16.ckpt")
    with pytest.raises(UserError, match="no facts"):
        load_autoencoder(tmp_path / "f16.ckpt")
