"""The published DDIM loop, from its golden vectors and from its formula in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fill import golden_normal, golden_unet, load_golden
from tolerance import products_of, rounding

from facesyn_cli.diffusion.denoising_loop import sample_latents
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.diffusion.schedule import build_schedule
from facesyn_cli.diffusion.schedulers import DdimAdmisConfig, build_ddim_admis

GOLDEN = Path(__file__).parents[1] / "golden"
X_T = golden_normal(77, (2, 3, 32, 32))


class Analytic(torch.nn.Module):
    """The network of the golden vectors: eps = 0.1 x + sin(t / 100)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x, t, context=None):
        self.seen.append(x.clone())
        return 0.1 * x + torch.sin(t.float() / 100).view(-1, 1, 1, 1)


def run(denoiser, steps, contexts=None):
    chain = build_ddim_admis(DdimAdmisConfig(name="ddim-admis", steps=steps))(build_schedule())
    return sample_latents(denoiser, chain, build_none(NoGuidanceConfig(name="none")), contexts, X_T)


def assert_near(actual, expected, steps):
    """Every step divides by sqrt(alpha_bar), exp of a float32 logarithm down to -10: off by 10 roundings."""
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=rounding(steps, 10 * expected.std()))


@pytest.mark.parametrize("steps", [50, 20])
def test_final_latents_equal_the_published_ones(steps):
    with np.load(GOLDEN / f"ddim{steps}_analytic.npz") as golden:
        assert_near(run(Analytic(), steps), golden["x_0"], steps)


@pytest.mark.parametrize("step", [1, 25, 48, 49])
def test_latents_on_the_way_equal_the_published_ones(step):
    denoiser = Analytic()
    run(denoiser, 50)
    with np.load(GOLDEN / "ddim50_analytic.npz") as golden:
        np.testing.assert_array_equal(golden["x_T"], X_T.numpy())
        assert_near(denoiser.seen[step], golden[f"x_after_step{step}"], 50)


@pytest.mark.parametrize("steps", [1, 2, 8, 250, 1000])
def test_any_divisor_follows_the_formula_in_float64(steps):
    alpha_bars = build_schedule().alpha_bars.double().numpy()
    skip = 1000 // steps
    x = X_T.double().numpy()
    for i in reversed(range(0, 1000, skip)):
        eps = 0.1 * x + np.sin(i / 100)
        before = i - skip
        after = alpha_bars[before - 1] if before > 0 else 1.0
        x0 = (x - np.sqrt(1 - alpha_bars[i]) * eps) / np.sqrt(alpha_bars[i])
        x = np.sqrt(after) * x0 + np.sqrt(1 - after) * eps
    assert_near(run(Analytic(), steps), x, steps)


def test_ten_steps_of_the_published_unet():
    """x_0 is (x - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar): at t = 900, the first step, errors of eps grow most."""
    contexts = torch.nn.functional.normalize(golden_normal(4321, (2, 512)), dim=1)
    latents = run(golden_unet(), 10, contexts)
    off = rounding(products_of(golden_unet()), load_golden("unet_ca")["eps_cond"].std())
    with np.load(GOLDEN / "ddim10_unet.npz") as golden:
        alpha_bar = build_schedule().alpha_bars[900].item()
        assert golden["x_0"].std() > 70
        np.testing.assert_allclose(latents.numpy(), golden["x_0"], rtol=0, atol=off / alpha_bar**0.5)
