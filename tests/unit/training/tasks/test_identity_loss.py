"""The identity loss: its formula, its gradient, its weight over time, and images drawn for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ldm import EMBEDDER
from torch import nn
from torch.nn import functional as F

from facesyn_cli.artifacts.ldm_settings import FlowTimes
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.diffusion.denoising_loop import denoised_to, sample_latents
from facesyn_cli.diffusion.flow import FlowSchedule
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.loss import TrainingNoise
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.scheduler_choice import build_scheduler, default_scheduler
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.pipeline import ChannelScale
from facesyn_cli.training.precision import loss_scaler
from facesyn_cli.training.tasks.identity_loss import IdentityLoss, IdentitySettings
from facesyn_cli.training.tasks.ldm_batches import Batch
from facesyn_cli.training.tasks.ldm_step import accumulate_gradients

SHAPE, SIZE, CPU = (4, 6, 6), 16, torch.device("cpu")
AUTOENCODER = {"name": "diffusers", "settings": {}, "path": "taesd3", "digest": "sha256:" + "a" * 64}
FLOW = FlowSchedule(FlowTimes(shift=1.5))
V = build_schedule("cosine", zero_terminal_snr=True, prediction="v")
SCALE = ChannelScale.of([0.5, -1.0, 0.0, 2.0], [2.0, 1.0, 0.5, 1.5], CPU)


class Denoiser(nn.Module):
    """A denoiser whose output depends on everything it is given."""

    is_conditional = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix, self.read = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(SIZE, 4)

    def forward(self, x, t, context, drop_context=None, component_mask=None):
        context = context if drop_context is None else context * ~drop_context[:, None]
        return self.mix(x) + self.read(context)[:, :, None, None] + t.float()[:, None, None, None] / 1000


@pytest.fixture
def recognizer(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    cfg = registry.configure("backbone", {
        "name": "latent-ir", "in_channels": 4, "latent_size": 6, "widths": [8], "blocks": [1], "embedding_size": SIZE,
    })
    write_weights(tmp_path / "recognizer", registry.build("backbone", cfg).state_dict(), {
        "kind": "backbone", "backbone": cfg.model_dump(mode="json"), "input_size": 6, "embedding_size": SIZE,
        "distilled_from": EMBEDDER, "autoencoder": AUTOENCODER,
    })
    return tmp_path / "recognizer"


def loss_of(recognizer: Path, contexts: Path | None = None, **settings) -> IdentityLoss:
    identity = IdentityLoss(
        recognizer, IdentitySettings(**settings), contexts, AUTOENCODER, EMBEDDER, SHAPE, SIZE, seed=0
    )
    identity.prepare(SCALE, CPU)
    return identity


def contexts_of(folder: Path, count: int = 7) -> Path:
    vectors = np.random.default_rng(2).standard_normal((count, SIZE)).astype(np.float32)
    np.save(folder / "contexts.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return folder / "contexts.npy"


def batch_of(schedule) -> Batch:
    generator = torch.Generator().manual_seed(4)
    latents, noise = (torch.randn(5, *SHAPE, generator=generator) for _ in range(2))
    contexts = F.normalize(torch.randn(5, SIZE, generator=generator), dim=1)
    t = torch.tensor([30, 200, 500, 800, 990])
    t = t.float() if schedule is FLOW else t
    return Batch(latents, contexts, TrainingNoise(t, noise, torch.tensor([False, True, False, False, False]), None))


@pytest.mark.parametrize("schedule", [FLOW, V, build_schedule(prediction="epsilon"), build_schedule(prediction="x0")])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_gradient_is_that_of_a_plain_loop(recognizer: Path, schedule, passes: int):
    identity, batch, weight, size = loss_of(recognizer), batch_of(schedule), 0.7, 6  # 1 image of another process
    denoiser = Denoiser()
    figures = accumulate_gradients(
        denoiser, schedule, batch, size, passes, "fp32", loss_scaler("fp32", CPU), identity=identity,
        identity_weight=weight,
    )
    plain = Denoiser()
    expected = torch.zeros(2)
    for row in range(5):
        x0, n, c = batch.latents[row : row + 1], batch.draws.noise[row : row + 1], batch.contexts[row : row + 1]
        t, dropped = batch.draws.t[row : row + 1], batch.draws.drop_context[row : row + 1]
        if schedule is FLOW:
            signal, spread = 1 - t / 1000, t / 1000
        else:
            signal, spread = schedule.alpha_bars[t].sqrt(), (1 - schedule.alpha_bars[t]).sqrt()
        x = signal * x0 + spread * n
        output = plain(x, t, c, drop_context=dropped)
        target, found = {
            "flow": (n - x0, x - spread * output),
            "v": (signal * n - spread * x0, signal * x - spread * output),
            "epsilon": (n, (x - spread * output) / signal), "x0": (x0, output),
        }[schedule.prediction]
        squares = (output - target).square().mean()
        cosine = F.cosine_similarity(identity.module(SCALE.restore(found)), c).squeeze()
        term = torch.zeros(()) if dropped else (1 - cosine) * (signal / (signal + spread)).squeeze()
        ((squares + weight * term) / size).backward()
        expected += torch.stack([squares.detach(), term.detach()]) / size
    assert torch.allclose(torch.stack([figures["loss"], figures["identity"]]).float(), expected, rtol=1e-4)
    assert figures["identity"] > 0.1
    for found, wanted in zip(denoiser.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-5 * wanted.grad.abs().max().item())
    assert all(p.grad is None for p in identity.module.parameters())


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_gradient_of_the_feature_maps_is_that_of_a_plain_loop(recognizer: Path, passes: int, weight: float):
    identity, batch, size = loss_of(recognizer, feature_weight=0.4), batch_of(FLOW), 6
    denoisers = Denoiser(), Denoiser()
    figures = accumulate_gradients(
        denoisers[0], FLOW, batch, size, passes, "fp32", loss_scaler("fp32", CPU), identity=identity,
        identity_weight=weight,
    )
    network, expected = identity.module, 0.0
    for row in range(5):
        x0, n, c = batch.latents[row : row + 1], batch.draws.noise[row : row + 1], batch.contexts[row : row + 1]
        t, dropped = batch.draws.t[row : row + 1], batch.draws.drop_context[row : row + 1]
        share = 1 - t / 1000
        x = share * x0 + (1 - share) * n
        output = denoisers[1](x, t, c, drop_context=dropped)
        predicted = x - (1 - share) * output
        distance = 0
        scaled = [(SCALE.restore(z) - network.mean) / network.std for z in (predicted, x0)]
        stems = [network.input_layer(z) for z in scaled]
        for pair in (stems, [network.body(stem) for stem in stems]):
            a, b = (y / y.square().sum(1, keepdim=True).sqrt() for y in pair)
            distance = distance + (a - b).square().sum(1).mean()
        cosine = F.cosine_similarity(network(SCALE.restore(predicted)), c).squeeze()
        loss = (output - n + x0).square().mean() + 0.4 * share * distance + ~dropped * weight * share * (1 - cosine)
        (loss / size).sum().backward()
        expected += (share * distance).item() / size
    assert figures["features"].item() == pytest.approx(expected, rel=1e-4) and expected > 0.1
    for found, wanted in zip(denoisers[0].parameters(), denoisers[1].parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in network.parameters())


def test_the_weight_falls_at_the_end():
    settings = IdentitySettings(weight=2.0, fall=0.5)
    assert [settings.weight_at(position) for position in (0, 0.5, 0.75, 1)] == [2.0, 2.0, 1.0, 0.0]
    assert IdentitySettings(weight=0.5).weight_at(0.99) == 0.5


@pytest.mark.parametrize("schedule", [FLOW, V])
def test_images_are_drawn_up_to_a_step_of_the_sampler(recognizer: Path, tmp_path: Path, schedule):
    identity = loss_of(recognizer, contexts_of(tmp_path), images=4, steps=5)
    denoiser, taken = Denoiser(), set()
    for step in range(16):
        contexts, noise, count = identity.drawn.draw(step, 0, 1)
        taken.add(count)
        make = build_scheduler(default_scheduler(schedule.prediction, "ddim", steps=5), schedule.prediction)
        x, t = denoised_to(denoiser, make(schedule), contexts, noise, count)
        denoiser.zero_grad()
        found = identity.of_drawn(denoiser, schedule, step, 0, 1)
        with torch.no_grad():
            clean = schedule.clean_latents(x, denoiser(x, t, contexts), t)
            expected = schedule.signal_share(t) * identity.distances(identity.read(clean), contexts)
        assert found.shape == (4,) and torch.allclose(found, expected, atol=1e-6)
        found.sum().backward()
        assert denoiser.training
        assert denoiser.read.weight.grad.abs().max() > 0
    assert taken == {1, 2, 3, 4}


def test_the_gradient_in_bfloat16_is_that_of_float32_to_rounding(recognizer: Path, tmp_path: Path):
    """Steps without a gradient come before the one with it: weights that they cast must not be taken again."""
    identity, gradients = loss_of(recognizer, contexts_of(tmp_path), images=6, steps=4), {}
    for precision in ("fp32", "bf16"):
        denoiser = Denoiser()
        identity.of_drawn(denoiser, FLOW, 1, 0, 1, precision).sum().backward()
        gradients[precision] = [p.grad for p in denoiser.parameters()]
    for full, half in zip(gradients["fp32"], gradients["bf16"], strict=True):
        assert half is not None and F.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.9


def test_what_is_drawn_does_not_depend_on_the_number_of_processes(recognizer: Path, tmp_path: Path):
    identity = loss_of(recognizer, contexts_of(tmp_path), images=5)
    whole = identity.of_drawn(Denoiser(), FLOW, 3, 0, 1)
    parts = [identity.of_drawn(Denoiser(), FLOW, 3, rank, 3) for rank in range(3)]
    assert torch.allclose(torch.cat([part for part in parts if part is not None]), whole, atol=1e-6)
    few = loss_of(recognizer, contexts_of(tmp_path), images=1)
    assert few.of_drawn(Denoiser(), FLOW, 3, 0, 2) is None  # the other process draws it


def test_all_steps_of_a_sampler_end_where_sampling_ends():
    denoiser, noise = Denoiser().eval(), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    contexts = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))
    make = build_scheduler(default_scheduler("flow", "ddim", steps=6), "flow")
    scheduler = make(FLOW)
    x, t = denoised_to(denoiser, scheduler, contexts, noise, 5)
    with torch.no_grad():
        found = scheduler.step(denoiser(x, t, contexts), 5, x, None)
    expected = sample_latents(denoiser, make(FLOW), build_none(NoGuidanceConfig(name="none")), contexts, noise)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"autoencoder": {**AUTOENCODER, "digest": "sha256:" + "b" * 64}}, "reads latents of taesd3"),
        ({"embedder": "sha256:" + "c" * 64}, "was taught embeddings of recognizer sha256:5555"),
        ({"latent_shape": (4, 8, 8)}, r"reads latents \(4, 6, 6\), those of the LDM are \(4, 8, 8\)"),
        ({"context_size": 8}, "gives embeddings of 16 numbers, contexts have 8"),
    ],
)
def test_a_recognizer_that_does_not_fit_is_refused(recognizer: Path, change, says):
    settings = {
        "path": recognizer, "settings": IdentitySettings(), "contexts": None, "autoencoder": AUTOENCODER,
        "embedder": EMBEDDER, "latent_shape": SHAPE, "context_size": SIZE, "seed": 0,
    }
    with pytest.raises(UserError, match=says):
        IdentityLoss(**{**settings, **change})
