"""The shortened ancestral chain: diffusers' scheduler step by step, the formulas, and its ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from facesyn_cli.diffusion.ancestral import AncestralChain
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.errors import UserError

SCHEDULE = build_schedule("linear", 1000, 1e-4, 0.02)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_every_step_is_that_of_diffusers(steps):
    chain = AncestralChain(SCHEDULE, steps)
    theirs = DDPMScheduler(
        variance_type="learned_range", clip_sample=True, timestep_spacing="linspace", beta_start=1e-4, beta_end=0.02
    )
    theirs.set_timesteps(steps)
    if steps > 1:  # numpy's linspace of one number starts at 0, so does ours
        assert chain.timesteps[0] == 999
    assert chain.timesteps == theirs.timesteps.tolist()
    x = torch.randn(2, 3, 4, 4)
    for index, t in enumerate(theirs.timesteps):
        output = torch.randn(2, 6, 4, 4)
        noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(index))
        expected = theirs.step(output, t, x, generator=torch.Generator().manual_seed(index)).prev_sample
        found = chain.step(index, x, output, None if index == steps - 1 else noise)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)  # theirs takes 1 - ab in float32
        x = expected


def test_one_step_by_the_formulas():
    chain = AncestralChain(SCHEDULE, 100)
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    kept = np.round(np.linspace(0, 999, 100)).astype(int)
    x, output, noise = torch.randn(1, 1, 2, 2), torch.randn(1, 2, 2, 2), torch.randn(1, 1, 2, 2)
    for index in (0, 50, 98):
        i = 99 - index
        bar, before = bars[kept[i]], bars[kept[i - 1]]
        beta = 1 - bar / before
        posterior = beta * (1 - before) / (1 - bar)
        eps, v = output[:, :1].double().numpy(), (output[:, 1:].double().numpy() + 1) / 2
        x0 = np.clip((x.numpy() - np.sqrt(1 - bar) * eps) / np.sqrt(bar), -1, 1)
        mean = np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x.numpy()
        expected = mean + np.sqrt(beta**v * posterior ** (1 - v)) * noise.numpy()
        assert chain.timesteps[index] == kept[i]
        np.testing.assert_allclose(chain.step(index, x, output, noise).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_knows_the_image_is_led_to_it():
    chain, image = AncestralChain(SCHEDULE, 20), torch.rand(1, 3, 4, 4) * 2 - 1
    bars = torch.cumprod(1 - SCHEDULE.betas.double(), 0)
    x = torch.randn(1, 3, 4, 4)
    for index, t in enumerate(chain.timesteps):
        bar = float(bars[t])
        eps = (x - bar**0.5 * image) / (1 - bar) ** 0.5
        x = chain.step(index, x, torch.cat([eps, torch.zeros_like(eps)], 1), torch.randn_like(x))
    torch.testing.assert_close(x, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps(steps):
    with pytest.raises(UserError, match="1 to 1000"):
        AncestralChain(SCHEDULE, steps)
