"""The perceptual loss: its formula, its gradient, the variance of channels, and the weights of positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.ldm_settings import FlowTimes
from facesyn_cli.data.alignment import template
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.loss import TrainingNoise
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.sampling.pipeline import ChannelScale
from facesyn_cli.training.precision import loss_scaler
from facesyn_cli.training.tasks.ldm_batches import Batch
from facesyn_cli.training.tasks.ldm_step import accumulate_gradients
from facesyn_cli.training.tasks.perceptual_loss import PerceptualLoss, PerceptualSettings, position_weights

SHAPE, CPU = (16, 4, 4), torch.device("cpu")
FLOW = FlowSchedule(FlowTimes(shift=1.5))
V = build_schedule("cosine", zero_terminal_snr=True, prediction="v")
SCALE = ChannelScale.of([0.2] * 16, [1.5] * 16, CPU)


class Denoiser(nn.Module):
    """A denoiser without a context."""

    is_conditional = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x, t, context=None, drop_context=None, component_mask=None):
        return self.mix(x) + t.float()[:, None, None, None] / 1000


def photos(count: int = 20) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def loss_of(**settings) -> PerceptualLoss:
    loss = PerceptualLoss(PerceptualSettings(**settings), load_autoencoder("taesd3"), SHAPE)
    loss.prepare(SCALE, photos(), CPU)
    return loss


def plain_maps(latents: Tensor) -> list[Tensor]:
    """Return what the decoder of taesd3 has before its first and second enlargement."""
    layers = load_autoencoder("taesd3").model.decoder.layers
    first, second = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Upsample)][:2]
    coarse = layers[:first](3 * torch.tanh(latents / 3))
    return [coarse, layers[first:second](coarse)]


@pytest.mark.parametrize("schedule", [FLOW, V])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_gradient_is_that_of_a_plain_loop(schedule, passes: int):
    perceptual, size = loss_of(weight=0.7, eyes_and_mouth=3), 6  # 1 image of another process
    generator = torch.Generator().manual_seed(4)
    latents, noise = (torch.randn(5, *SHAPE, generator=generator) for _ in range(2))
    t = torch.tensor([30, 200, 500, 800, 990])
    t = t.float() if schedule is FLOW else t
    denoiser, plain = Denoiser(), Denoiser()
    figures = accumulate_gradients(
        denoiser, schedule, Batch(latents, None, TrainingNoise(t, noise, None, None)), size, passes, "fp32",
        loss_scaler("fp32", CPU), perceptual=perceptual,
    )
    with torch.no_grad():
        variances = [x.var((0, 2, 3), correction=0).add(1e-4)[:, None, None] for x in plain_maps(photos())]
    expected = torch.zeros(2)
    for row in range(5):
        x0, n, at = latents[row : row + 1], noise[row : row + 1], t[row]
        if schedule is FLOW:
            signal, spread = 1 - at / 1000, at / 1000
        else:
            signal, spread = schedule.alpha_bars[at].sqrt(), (1 - schedule.alpha_bars[at]).sqrt()
        x = signal * x0 + spread * n
        output = plain(x, at[None])
        target = n - x0 if schedule is FLOW else signal * n - spread * x0
        found = x - spread * output if schedule is FLOW else signal * x - spread * output
        squares, term = (output - target).square().mean(), torch.zeros(())
        for made, real, variance in zip(
            plain_maps(SCALE.restore(found)), plain_maps(SCALE.restore(x0)), variances, strict=True
        ):
            weighted = (made - real).square() / variance * position_weights(made.shape[-1], 3)
            term = term + weighted.mean() / 2 * signal / (signal + spread)
        ((squares + 0.7 * term) / size).backward()
        expected += torch.stack([squares.detach(), term.detach()]) / size
    assert torch.allclose(torch.stack([figures["loss"], figures["perceptual"]]).float(), expected, rtol=1e-3)
    assert figures["perceptual"] > 0.1
    for found, wanted in zip(denoiser.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-2, atol=1e-4 * wanted.grad.abs().max().item())


@torch.no_grad()
def test_two_photos_differ_by_about_two_and_a_photo_from_itself_by_nothing():
    perceptual = loss_of()
    latents = SCALE.normalize(photos(40))
    a, b = perceptual.maps(latents[:20]), perceptual.maps(latents[20:])
    assert 1.2 < perceptual.distances(a, b).mean().item() < 2  # 2: maps that are distributed alike at all positions
    assert perceptual.distances(a, a).eq(0).all() and perceptual.distances(a, b).shape == (20,)


def test_eyes_and_mouth_weigh_more():
    for side in (14, 28, 112):
        weights = position_weights(side, 3.0)
        assert weights.mean().item() == pytest.approx(1)
        left, right, nose, *mouth = (template(side) + 0.5).astype(int).tolist()
        corner = weights[0, 0].item()
        middle = [sum(x) // 2 for x in zip(*mouth, strict=True)]
        for x, y in (left, right, middle):
            assert weights[y, x].item() / corner == pytest.approx(4, rel=0.12)
        assert weights[nose[1], nose[0]].item() / corner < 2
        assert position_weights(side, 0).eq(1).all()


def test_an_autoencoder_without_such_maps_is_refused():
    with pytest.raises(UserError, match="perceptual needs the feature maps of the autoencoder's decoder"):
        PerceptualLoss(PerceptualSettings(), nn.Identity(), SHAPE)
    with pytest.raises(UserError, match="perceptual.maps is 4, the decoder has 3 resolutions below that of the image"):
        PerceptualLoss(PerceptualSettings(maps=4), load_autoencoder("taesd3"), SHAPE)
