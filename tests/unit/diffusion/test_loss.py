from __future__ import annotations

import pytest
import torch
from fill import fill_state
from torch import nn

from facesyn_cli.diffusion.loss import diffusion_loss, training_noise
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

SETTINGS = {
    "shape": (2, 4, 4), "schedule": build_schedule(), "context_dropout": 0.3, "component_dropout": 0.25,
    "context_width": 16,
}


def test_draws_of_an_image_do_not_depend_on_the_others():
    whole = training_noise(7, 3, range(6), **SETTINGS)
    parts = [training_noise(7, 3, rows, **SETTINGS) for rows in ([4, 1], [0], [5, 3, 2])]
    order = [4, 1, 0, 5, 3, 2]
    for field in range(4):
        torch.testing.assert_close(torch.cat([part[field] for part in parts]), whole[field][order], rtol=0, atol=0)


def test_step_seed_and_image_each_change_the_draws():
    base = training_noise(0, 0, [0], **SETTINGS).noise
    for other in ((1, 0, [0]), (0, 1, [0]), (0, 0, [1])):
        assert not torch.equal(training_noise(*other, **SETTINGS).noise, base)


def test_draws_have_their_distributions():
    n = 20000
    ten = build_schedule("cosine", 10)
    draws = training_noise(0, 0, range(n), **{**SETTINGS, "shape": (1, 1, 1), "schedule": ten})
    assert draws.t.bincount(minlength=10).sub(n / 10).abs().max() < 4 * (n * 0.09) ** 0.5
    assert abs(draws.noise.mean()) < 4 / n**0.5
    assert abs(draws.noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(draws.drop_context.float().mean() - 0.3) < 4 * (0.21 / n) ** 0.5
    assert draws.component_mask.dtype == torch.bool
    assert abs(draws.component_mask.float().mean() - 0.75) < 4 * (0.1875 / (16 * n)) ** 0.5


def test_without_dropout_there_are_no_masks_and_the_rest_is_the_same():
    plain = training_noise(0, 0, [0, 1], **{**SETTINGS, "context_dropout": 0.0, "component_dropout": 0.0})
    dropped = training_noise(0, 0, [0, 1], **SETTINGS)
    assert plain.drop_context is None
    assert plain.component_mask is None
    assert torch.equal(plain.t, dropped.t)
    assert torch.equal(plain.noise, dropped.noise)


class Spy(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.seen = answer, None

    def forward(self, x, t, context, drop_context=None, component_mask=None):
        self.seen = (x, t, context, drop_context, component_mask)
        return self.answer(x)


def test_loss_is_the_squared_error_of_the_noise_per_image():
    schedule, draws = build_schedule(), training_noise(0, 0, [0, 1], **SETTINGS)
    latents, contexts = torch.ones(2, 2, 4, 4), torch.zeros(2, 8)
    spy = Spy(torch.zeros_like)
    loss = diffusion_loss(spy, schedule, latents, contexts, draws)
    torch.testing.assert_close(loss, (draws.noise.double() ** 2).mean(dim=(1, 2, 3)).float())
    x, t, context, drop_context, component_mask = spy.seen
    assert torch.equal(x, schedule.add_noise(latents, draws.noise, draws.t))
    assert torch.equal(t, draws.t)
    assert context is contexts
    assert drop_context is draws.drop_context
    assert component_mask is draws.component_mask


def test_a_perfect_denoiser_has_no_loss():
    draws = training_noise(0, 0, [0, 1], **SETTINGS)
    loss = diffusion_loss(Spy(lambda x: draws.noise), build_schedule(), torch.ones(2, 2, 4, 4), None, draws)
    assert torch.equal(loss, torch.zeros(2))


@pytest.mark.parametrize("conditioning", ["ca", "adagn"])
def test_gradient_does_not_depend_on_how_a_batch_is_split(conditioning):
    """The same global batch in one piece and in two, in float64, through the real network and its masks."""
    torch.manual_seed(0)
    unet = fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", in_channels=2, channels=32, multipliers=(1,), attention=(True,), num_blocks=1,
        context_size=8, context_width=32, conditioning=conditioning,
    ))).double()
    settings = {**SETTINGS, "context_width": 32}
    latents = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    contexts = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1)

    def gradient(parts):
        unet.zero_grad()
        for rows in parts:
            draws = training_noise(0, 5, rows, **settings)
            draws = draws._replace(noise=draws.noise.double())
            loss = diffusion_loss(unet, build_schedule(), latents[rows], contexts[rows], draws)
            (loss.sum() / 4).backward()
        return torch.cat([p.grad.flatten() for p in unet.parameters()])

    whole, split = gradient([[0, 1, 2, 3]]), gradient([[2, 0], [3, 1]])
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(split, whole, atol=1e-5 * float(whole.abs().max()), rtol=0)  # the loss is float32
