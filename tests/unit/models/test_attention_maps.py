from __future__ import annotations

import math

import pytest
import torch
from fill import fill_state
from tolerance import products_of, rounding

from facesyn_cli.models.attention_maps import attention_map
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig


@pytest.fixture(scope="module")
def unet():
    return fill_state(ConditionalUNet(UnetConfig(
        name="idiff-unet", channels=32, multipliers=(1, 2), attention=(False, True), num_blocks=1, context_size=8,
        context_width=32,
    )))


X, T = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900, 500, 10])
CONTEXTS = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)


def _tolerance(unet) -> float:
    return rounding(products_of(unet), 0.6)  # 0.6: spread of the noise it predicts


def test_map_is_softmax_of_scaled_scores():
    q, k = torch.randn(2, 3, 5, 4).double(), torch.randn(2, 3, 7, 4).double()
    scores = torch.einsum("bald,basd->bals", q, k) / math.sqrt(4)
    torch.testing.assert_close(attention_map(q, k).double(), scores.exp() / scores.exp().sum(-1, keepdim=True),
                               atol=1e-6, rtol=0)


@torch.no_grad()
def test_recording_changes_nothing_and_injecting_a_pass_into_itself_neither(unet):
    plain = unet(X, T, CONTEXTS)
    recorded, maps = unet.encode_context(CONTEXTS).recording()
    torch.testing.assert_close(unet(X, T, recorded), plain, atol=_tolerance(unet), rtol=0)
    heads = [m.shape[1] for m in maps.cross]
    assert heads == [2, 2, 2, 1] and all(m.shape == (3, m.shape[1], 16, 32) for m in maps.cross)  # down, middle, up, up
    for with_cross in (False, True):
        again = unet(X, T, unet.encode_context(CONTEXTS).injecting(maps, with_cross))
        torch.testing.assert_close(again, plain, atol=_tolerance(unet), rtol=0)


@torch.no_grad()
def test_injected_maps_are_those_of_the_other_pass(unet):
    """With all maps injected, what the keys say no longer matters; the values of the context still do."""
    empty, maps = unet.encode_context(None, batch=3).recording()
    unet(X, T, empty)
    state = unet.encode_context(CONTEXTS)
    injected = unet(X, T, state.injecting(maps, with_cross=True))
    assert (injected - unet(X, T, state)).abs().max() > 1e-3
    shifted = [[(p[0] + 1, p[1]) if isinstance(p, tuple) else p for p in block] for block in state.per_block]
    other_keys = type(state)(state.batch, tuple(map(tuple, shifted)))
    again = unet(X, T, other_keys.injecting(maps, with_cross=True))
    torch.testing.assert_close(again, injected, atol=_tolerance(unet), rtol=0)
    other_values = unet.encode_context(CONTEXTS.flip(0)).injecting(maps, with_cross=True)
    assert (unet(X, T, other_values) - injected).abs().max() > 1e-3


@torch.no_grad()
def test_where_chooses_contexts_sample_by_sample(unet):
    named, empty = unet.encode_context(CONTEXTS), unet.encode_context(None, batch=3)
    mixed = unet(X, T, named.where(torch.tensor([True, False, True]), empty))
    expected = torch.stack([unet(X, T, named)[0], unet(X, T, empty)[1], unet(X, T, named)[2]])
    torch.testing.assert_close(mixed, expected, atol=_tolerance(unet), rtol=0)
