"""The published UNets against golden outputs, published names and parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill_state, golden_unet, load_golden, load_keys, skeleton
from tolerance import products_of, rounding

VARIANTS = {
    "ca": ("ldm_unet_ca", 216_341_187, 842),
    "adagn": ("ldm_unet_cond_adagn", 134_595_939, 566),
    "unconditional": ("ldm_unet_uncond_adagn", 132_392_163, 520),
}


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    golden = load_golden("unet_ca")
    return tuple(torch.from_numpy(golden[key]) for key in ("x", "t", "context"))


def _check(network: torch.nn.Module, actual: torch.Tensor, expected: np.ndarray, slope: float = 0) -> None:
    tolerance = rounding(products_of(network), expected.std()) + rounding(scale=slope * expected.std())
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("conditioning", VARIANTS)
def test_names_shapes_and_counts_are_the_published_ones(conditioning):
    keys, num_parameters, num_tensors = VARIANTS[conditioning]
    module = skeleton("denoiser", name="idiff-unet", conditioning=conditioning)
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == load_keys(keys)
    assert len(module.state_dict()) == num_tensors
    assert sum(parameter.numel() for parameter in module.parameters()) == num_parameters


def test_embeddings_of_time_and_context():
    golden = load_golden("unet_ca")
    _, t, context = _inputs()
    unet = golden_unet()
    # t times a frequency is rounded before its sine is taken
    _check(unet.time_emb, unet.time_emb(t), golden["time_emb"], slope=t.max())
    _check(unet.context_emb, unet.context_emb(context), golden["context_emb"])


@torch.inference_mode()
def test_cross_attention_outputs():
    golden = load_golden("unet_ca")
    x, t, context = _inputs()
    unet = golden_unet()
    _check(unet, unet(x, t, context), golden["eps_cond"])
    _check(unet, unet(x, t, None), golden["eps_uncond"])
    dropped = torch.tensor([True, False])
    _check(unet, unet(x, t, context, drop_context=dropped), golden["eps_mask0"])
    _check(unet, unet(x, t, unet.encode_context(context, dropped)), golden["eps_mask0"])


@torch.inference_mode()
@pytest.mark.parametrize(
    ("conditioning", "name"), [("adagn", "unet_cond_adagn"), ("unconditional", "unet_uncond_adagn")]
)
def test_adagn_outputs(conditioning, name):
    golden = load_golden(name)
    x, t, context = _inputs()
    module = skeleton("denoiser", name="idiff-unet", conditioning=conditioning)
    unet = fill_state(module, golden_unet().state_dict())
    _check(unet, unet(x, t, context), golden["eps"])
    _check(unet, unet(x, t, None), golden["eps_no_context"])
