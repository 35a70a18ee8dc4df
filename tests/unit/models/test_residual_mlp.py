"""`residual-mlp`: what reaches its output, and what does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerance import products_of, rounding

from facesyn_cli.plugins import registry


def build(**settings):
    torch.manual_seed(0)
    cfg = {"name": "residual-mlp", "in_channels": 6, "width": 16, "blocks": 2, "modulation": 8, "context_size": 5,
           "context_width": 7}
    network = registry.build("denoiser", registry.configure("denoiser", {**cfg, **settings})).eval()
    for parameter in network.parameters():  # zero-initialized layers would hide the layers before them
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


X, T, C = torch.randn(4, 6, 1, 1), torch.tensor([0, 10, 500, 999]), F.normalize(torch.randn(4, 5), dim=1)


def test_a_fresh_network_says_zero():
    network = registry.build("denoiser", registry.configure("denoiser", {"name": "residual-mlp", "in_channels": 6}))
    assert network(X, T, F.normalize(torch.randn(4, 512), dim=1)).abs().max() == 0


@torch.no_grad()
def test_everything_given_has_an_effect():
    network = build()
    out = network(X, T, C)
    assert out.shape == X.shape and out.dtype == torch.float32
    for other in (network(X + 1, T, C), network(X, T + 1, C), network(X, T, C.flip(0))):
        assert ((other - out).flatten(1).abs().max(1).values > 1e-6).all()


@torch.no_grad()
def test_each_sample_is_on_its_own():
    network = build()
    whole = network(X, T, C)
    each = torch.cat([network(X[i : i + 1], T[i : i + 1], C[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, each, rtol=0, atol=rounding(products_of(network), whole.std()))


@torch.no_grad()
def test_a_dropped_context_is_the_empty_one():
    network = build()
    drop = torch.tensor([True, False, True, False])
    mixed, empty, full = network(X, T, C, drop_context=drop), network(X, T), network(X, T, C)
    expected = torch.where(drop.view(-1, 1, 1, 1), empty, full)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=rounding(products_of(network), full.std()))
    network.empty_context.add_(1.0)
    assert not torch.allclose(network(X, T), empty)


@torch.no_grad()
def test_component_dropout_zeroes_and_scales_the_projected_context():
    network = build(component_dropout=0.5)
    keep = torch.rand(4, 7) < 0.5
    seen = []
    network.from_context.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    network(X, T, C)
    network(X, T, C, component_mask=keep)
    assert torch.allclose(seen[1], seen[0] * keep * 2)
    network.train()(X, T, C)
    dropped = seen[2] == 0
    assert 0 < dropped.sum() < 28 and torch.allclose(seen[2], seen[0] * ~dropped * 2)


@torch.no_grad()
def test_a_grid_is_one_vector():
    network = build(in_channels=3, grid=4)
    x = torch.randn(2, 3, 4, 4)
    out = network(x, T[:2], C[:2])
    assert out.shape == x.shape
    moved = x.clone()
    moved[0, 0, 0, 0] += 1
    assert (network(moved, T[:2], C[:2]) - out)[0, 2, 3, 3].abs() > 1e-6, "every value sees every other"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected latents \(B, 6, 1, 1\)"):
        build()(torch.zeros(1, 6, 2, 2), T[:1])
