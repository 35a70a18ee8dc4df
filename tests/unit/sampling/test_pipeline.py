"""`LdmPipeline`: the chain of schedule, scheduler, guidance, denoiser and decoder, assembled once."""

from __future__ import annotations

import pytest
import torch
from fill import golden_normal

from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.diffusion.denoising_loop import sample_latents
from facesyn_cli.diffusion.guidance import CfgConfig, build_cfg
from facesyn_cli.diffusion.noise import image_noise, step_noise
from facesyn_cli.diffusion.schedule import ldm_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.inference import InferenceOptions
from facesyn_cli.sampling.pipeline import LdmPipeline, finish_pixels

SETTINGS = LdmSettings(
    denoiser={"name": "idiff-unet"}, latent_channels=3, latent_size=4, image_size=8, output_size=6, embedding_size=3,
    latent_mean=[0.1, 0.2, 0.3], latent_std=[0.5, 1.0, 2.0], num_timesteps=500,
)
CONTEXTS = golden_normal(1, (2, 3))
PLACES = [("a", 0), ("b", 3)]


class Denoiser(torch.nn.Module):
    """Depends on latents, timestep and context."""

    def forward(self, x, t, context):
        shift = 0 if context is None else context[:, :, None, None]
        return 0.3 * x + 0.1 * shift + t.view(-1, 1, 1, 1) / 5000


class Autoencoder(torch.nn.Module):
    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=2.0)


def plugin(kind, **settings):
    return registry.configure(kind, settings)


def pipeline(**scheduler):
    ldm = LoadedLdm(Denoiser(), SETTINGS, "sha256:ldm")
    section = plugin("scheduler", **{"name": "ddim", "steps": 3, **scheduler})
    return LdmPipeline.of(ldm, Autoencoder(), section, plugin("guidance", name="cfg", scale=2.0))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "unipc"])
def test_faces_are_those_of_the_chain_put_together_by_hand(name):
    made = pipeline(name=name)
    noise, draw = made.keyed_noise(7, PLACES)
    shape = (3, 4, 4)
    assert noise.equal(torch.stack([image_noise(7, identity, sample, shape) for identity, sample in PLACES]))
    assert draw(1).equal(torch.stack([step_noise(7, identity, sample, 1, shape) for identity, sample in PLACES]))
    scheduler = registry.build("scheduler", plugin("scheduler", name=name, steps=3))(ldm_schedule(SETTINGS))
    latents = sample_latents(
        Denoiser(), scheduler, build_cfg(CfgConfig(name="cfg", scale=2.0)), CONTEXTS, noise, draw, num_timesteps=500
    )
    assert made.latents(CONTEXTS, noise, step_noise=draw).equal(latents)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (SETTINGS.latent_mean, SETTINGS.latent_std))
    expected = finish_pixels(Autoencoder().decode(latents * std + mean), 6)
    faces, is_finite = made(CONTEXTS, noise, step_noise=draw)
    assert faces.equal(expected) and faces.shape == (2, 6, 6, 3) and is_finite.tolist() == [True, True]


def test_evaluations_count_both_contexts_of_guided_steps():
    made = pipeline(steps=5)
    assert made.evaluations == 10 and made.is_guided
    plain = made.using(plugin("scheduler", name="ddim", steps=4))
    assert plain.evaluations == 4 and not plain.is_guided and plain.denoiser is made.denoiser


def test_images_with_numbers_that_are_not_finite_are_marked():
    made = pipeline()
    noise, draw = made.keyed_noise(0, PLACES)
    noise[1, 0, 0, 0] = torch.nan
    assert made(CONTEXTS, noise, step_noise=draw)[1].tolist() == [True, False]


def test_what_does_not_fit_is_refused_when_the_pipeline_is_built():
    with pytest.raises(UserError, match="steps"):
        pipeline(name="ddim-admis", steps=7)
    with pytest.raises(UserError, match="attention to contexts, which this denoiser does not have"):
        pipeline().using(plugin("scheduler", name="ddim"), plugin("guidance", name="uiface"))
    with pytest.raises(UserError, match="internal needs an early prediction, which this denoiser does not have"):
        pipeline().using(plugin("scheduler", name="ddim"), plugin("guidance", name="internal"))
    network = Denoiser()
    network.has_attention_maps = True
    ldm = LoadedLdm(network, SETTINGS, "sha256:ldm")
    traced = InferenceOptions(cuda_graphs=True)
    with pytest.raises(UserError, match="cannot run with compile or cuda_graphs"):
        LdmPipeline.of(ldm, None, plugin("scheduler", name="ddim"), plugin("guidance", name="uiface"), options=traced)


def test_options_change_how_the_networks_run():
    network, seen = Denoiser(), []
    network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    ldm, scheduler = LoadedLdm(network, SETTINGS, "sha256:ldm"), plugin("scheduler", name="ddim", steps=3)
    for options, dtype in ((None, torch.float32), (InferenceOptions("bf16"), torch.bfloat16)):
        made = LdmPipeline.of(ldm, None, scheduler, options=options)
        assert made.latents(CONTEXTS, made.keyed_noise(0, PLACES)[0]).dtype is torch.float32
        assert set(seen) == {dtype}
        seen.clear()
