from __future__ import annotations

import pytest
import torch
from fill import fill_state
from tolerance import products_of, rounding
from torch import nn

from facesyn_cli.diffusion.denoising_loop import count_evaluations, sample_latents
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig
from facesyn_cli.plugins import registry


class Recorder(nn.Module):
    """eps = mean of the context, 0 where there is none; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))
        self.calls = []

    def forward(self, x, t, context=None):
        self.calls.append((x, t, context))
        level = torch.zeros(len(x)) if context is None else (context @ self.weight).float().mean(dim=1)
        return level.view(-1, 1, 1, 1).expand_as(x)


class Encoding(Recorder):
    """Offers `encode_context`, which doubles the context."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = []

    def encode_context(self, context, batch):
        self.encoded.append(batch)
        return torch.full((batch, 2), -1.0) if context is None else 2 * context


CONTEXTS = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.25, 0.25]])
NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def make(scheduler="ddim", steps=4, guidance="none", **settings):
    make_scheduler = registry.build("scheduler", registry.configure("scheduler", {"name": scheduler, "steps": steps}))
    guide = registry.build("guidance", registry.configure("guidance", {"name": guidance, **settings}))
    return make_scheduler(build_schedule()), guide


def test_the_network_sees_every_timestep_once_as_an_integer():
    denoiser = Recorder()
    latents = sample_latents(denoiser, *make(), CONTEXTS, NOISE)
    assert [t.tolist() for _, t, _ in denoiser.calls] == [[999] * 3, [749] * 3, [499] * 3, [249] * 3]
    assert all(t.dtype == torch.long for _, t, _ in denoiser.calls)
    assert torch.equal(denoiser.calls[0][0], NOISE)
    assert latents.shape == NOISE.shape
    assert not latents.requires_grad


def test_contexts_are_encoded_once_and_the_empty_one_only_where_needed():
    denoiser = Encoding()
    sample_latents(denoiser, *make(), CONTEXTS, NOISE)
    assert denoiser.encoded == [3]
    assert all(torch.equal(context, 2 * CONTEXTS) for _, _, context in denoiser.calls)
    denoiser = Encoding()
    sample_latents(denoiser, *make(guidance="cfg", scale=2), CONTEXTS, NOISE)
    assert denoiser.encoded == [3, 3]
    assert len(denoiser.calls) == 8


def test_guidance_combines_context_and_empty_context():
    """The denoiser is linear in the context and 0 without, so scale s equals s times the context."""
    guided = sample_latents(Recorder(), *make(guidance="cfg", scale=3), CONTEXTS, NOISE)
    torch.testing.assert_close(guided, sample_latents(Recorder(), *make(), 3 * CONTEXTS, NOISE), atol=1e-3, rtol=1e-4)


def test_unconditional_sampling():
    denoiser = Recorder()
    sample_latents(denoiser, *make(), None, NOISE)
    assert all(context is None for _, _, context in denoiser.calls)


def test_stochastic_schedulers_need_noise_and_take_it_per_step():
    drawn = []

    def draw(index):
        drawn.append(index)
        return NOISE.flip(0)

    sample_latents(Recorder(), *make("ddpm"), CONTEXTS, NOISE, draw)
    assert drawn == [0, 1, 2]  # nothing is added after the last step
    with pytest.raises(ValueError, match="needs draw_noise"):
        sample_latents(Recorder(), *make("ddpm"), CONTEXTS, NOISE)


def test_number_of_evaluations_is_what_the_network_sees():
    for settings in ({"guidance": "none"}, {"guidance": "cfg", "scale": 2, "end": 0.5}):
        scheduler, guidance = make(steps=6, **settings)
        denoiser = Recorder()
        expected = count_evaluations(scheduler, guidance)
        sample_latents(denoiser, scheduler, guidance, CONTEXTS, NOISE)
        assert len(denoiser.calls) == expected


@pytest.mark.parametrize("scheduler", ["ddim", "unipc", "euler"])
def test_the_unet_gives_the_same_with_and_without_encoded_contexts(scheduler):
    """Batch by batch, image by image, encoded once or at every step: the same latents."""
    unet = fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", in_channels=3, channels=32, multipliers=(1, 1), attention=(False, True), num_blocks=1,
        context_size=8, context_width=32,
    )))
    contexts = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    noise = torch.randn(3, 3, 4, 4)

    class Plain(nn.Module):
        def forward(self, x, t, context):
            return unet(x, t, context)

    together = sample_latents(unet, *make(scheduler, guidance="cfg", scale=2), contexts, noise)
    plain = sample_latents(Plain(), *make(scheduler, guidance="cfg", scale=2), contexts, noise)
    tolerance = rounding(4 * products_of(unet), together.abs().max())  # 4 steps
    torch.testing.assert_close(together, plain, atol=tolerance, rtol=0)
    other = sample_latents(unet, *make(scheduler, guidance="cfg", scale=2), contexts.flip(0), noise)
    assert (other[0] - together[0]).abs().max() > 100 * tolerance  # the context matters
    alone = sample_latents(unet, *make(scheduler, guidance="cfg", scale=2), contexts[1:2], noise[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=tolerance, rtol=0)
