"""`dit`: its formula, what reaches its output, and what does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tolerance import products_of, rounding
from torch import Tensor

from facesyn_cli.models import dit
from facesyn_cli.models.dit import DiffusionTransformer, DitConfig
from facesyn_cli.models.dit_blocks import positions
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.inference import FastDenoiser, InferenceOptions, fuse_qkv

TINY = {"name": "dit", "in_channels": 3, "width": 24, "depth": 2, "heads": 3, "context_size": 5, "context_width": 7,
        "context_tokens": 2}
X, T = torch.randn(4, 3, 6, 6), torch.tensor([0, 10, 500, 999])
C = F.normalize(torch.randn(4, 5), dim=1)


def build(**settings) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = registry.build("denoiser", registry.configure("denoiser", {**TINY, **settings})).eval()
    for parameter in network.parameters():  # zero-initialized layers would hide the layers before them
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def near(network: torch.nn.Module, out: Tensor) -> dict[str, float]:
    return {"rtol": 0, "atol": rounding(products_of(network), out.std())}


@torch.no_grad()
def test_a_fresh_network_returns_zeros_and_its_blocks_are_the_identity():
    network = registry.build("denoiser", registry.configure("denoiser", TINY))
    assert network(X, T, C).abs().max() == 0
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: seen.append(torch.equal(inputs[0], out)))
    network(X, T, C)
    assert seen == [True, True]


@pytest.mark.parametrize("tokens", [0, 2])
def test_parameters_are_those_of_the_formula(tokens):
    n, k, e, patch = 24, 2, 7, 3 * 2**2
    block = 6 * n + (3 + 2 * (tokens > 0)) * n**2 + 2 * n // 3 + (n + 1) * n + (n + 1) * 4 * n + (4 * n + 1) * n
    outside = (patch + 1) * n + (256 + 1) * n + (n + 1) * n + (5 + 1) * e + e + (e + 1) * n + (e + 1) * tokens * n
    outside += (n + 1) * 6 * n + 2 * n + (n + 1) * patch
    assert sum(p.numel() for p in build(context_tokens=tokens).parameters()) == k * block + outside


@torch.no_grad()
def test_everything_given_has_an_effect():
    network = build()
    out = network(X, T, C)
    assert out.shape == X.shape and out.dtype == torch.float32
    for other in (network(X + 1, T, C), network(X, T + 1, C), network(X, T, C.flip(0))):
        assert ((other - out).flatten(1).abs().max(1).values > 1e-6).all()
    moved = X.clone()
    moved[:, 0, 0, 0] += 1
    assert (network(moved, T, C) - out)[:, 2, 5, 5].abs().min() > 1e-6, "every token sees every other"


@torch.no_grad()
def test_the_context_acts_as_signal_and_as_tokens():
    network = build()
    one, other = network.encode_context(C), network.encode_context(C.flip(0))
    out = network(X, T, one)
    by_tokens = network(X, T, type(one)(one.signal, other.keys, other.values))
    by_signal = network(X, T, type(one)(other.signal, one.keys, one.values))
    for changed in (by_tokens, by_signal):
        assert ((changed - out).flatten(1).abs().max(1).values > 1e-6).all()


@torch.no_grad()
def test_each_sample_is_on_its_own():
    network = build()
    whole = network(X, T, C)
    each = torch.cat([network(X[i : i + 1], T[i : i + 1], C[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, each, **near(network, whole))


@torch.no_grad()
def test_tokens_are_a_set_but_for_their_positions(monkeypatch):
    network = build()
    whole = network(X, T, C)
    assert not torch.allclose(network(X.roll(2, 3), T, C).roll(-2, 3), whole, atol=1e-4)
    monkeypatch.setattr("facesyn_cli.models.dit.positions", lambda r, c, width, *_: torch.zeros(r * c, width))
    whole = network(X, T, C)
    torch.testing.assert_close(network(X.roll(2, 3), T, C).roll(-2, 3), whole, **near(network, whole))


@torch.no_grad()
def test_a_dropped_context_is_the_empty_one():
    network = build()
    drop = torch.tensor([True, False, True, False])
    mixed, empty, full = network(X, T, C, drop_context=drop), network(X, T), network(X, T, C)
    torch.testing.assert_close(mixed, torch.where(drop.view(-1, 1, 1, 1), empty, full), **near(network, full))
    network.empty_context.add_(1.0)
    assert not torch.allclose(network(X, T), empty)


@torch.no_grad()
def test_component_dropout_zeroes_and_scales_the_projected_context():
    network = build(component_dropout=0.5)
    keep = torch.rand(4, 7) < 0.5
    seen = []
    network.from_context.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    network.to_tokens.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    network(X, T, C)
    network(X, T, C, component_mask=keep)
    assert torch.equal(seen[2], seen[3]) and torch.allclose(seen[2], seen[0] * keep * 2)
    network.train()(X, T, C)
    dropped = seen[4] == 0
    assert 0 < dropped.sum() < 28 and torch.allclose(seen[4], seen[0] * ~dropped * 2)


@torch.no_grad()
def test_contexts_encoded_once_and_joined_give_the_same():
    network = build()
    out, empty = network(X, T, C), network(X, T)
    encoded, without = network.encode_context(C), network.encode_context(None, batch=4)
    torch.testing.assert_close(network(X, T, encoded), out, rtol=0, atol=0)
    both = network(X.repeat(2, 1, 1, 1), T.repeat(2), encoded.joined(without))
    torch.testing.assert_close(both, torch.cat([out, empty]), **near(network, out))


@pytest.mark.parametrize("tokens", [0, 2])
@torch.no_grad()
def test_fused_projections_give_the_same(tokens):
    network = build(context_tokens=tokens)
    out = network(X, T, C)
    assert fuse_qkv(network) == 2 and not hasattr(network.blocks[0].attention, "to_q")
    torch.testing.assert_close(network(X, T, C), out, **near(network, out))


@torch.no_grad()
def test_half_precision_stays_near():
    out = build()(X, T, C)
    fast = FastDenoiser(build(), InferenceOptions("bf16", fused_qkv=True, joint_guidance=True))
    low = fast(X, T, fast.encode_context(C, batch=4))
    assert low.dtype == torch.float32
    error = (low - out).std() / out.std()
    assert error < 10 * torch.finfo(torch.bfloat16).eps, f"{error:.3f}"  # some ten layers in a row
    with torch.autocast("cpu", torch.bfloat16):
        assert (build().train()(X, T, C) - out).std() / out.std() < 10 * torch.finfo(torch.bfloat16).eps


@torch.no_grad()
def test_any_size_that_is_divisible_by_the_patch_and_no_other():
    network = build()
    assert network(torch.randn(1, 3, 4, 10), T[:1], C[:1]).shape == (1, 3, 4, 10)
    for shape in ((1, 3, 5, 6), (1, 4, 6, 6)):
        with pytest.raises(ValueError, match=r"expected latents \(B, 3, H, W\) with H and W divisible by 2"):
            network(torch.zeros(shape), T[:1])
    with pytest.raises(ValueError, match="4 contexts for 1 latents"):
        network(X[:1], T[:1], network.encode_context(C))
    with pytest.raises(ValidationError, match=r"width \(24\) must be divisible by heads \(5\)"):
        registry.configure("denoiser", {**TINY, "heads": 5})


def test_the_defaults_have_the_parameters_that_the_card_says():
    with torch.device("meta"):
        network = DiffusionTransformer(DitConfig(name="dit"))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 15


def test_dropped_tokens_bypass_the_middle_blocks_in_training_only():
    network = build(depth=4, token_drop=0.5)
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].detach(), out.detach())))
    out = network(X, T, C)
    assert [x.shape[1] for x, _ in seen] == [9, 9, 9, 9]
    torch.testing.assert_close(build(depth=4)(X, T, C), out, rtol=0, atol=0)
    seen.clear()
    network.train()
    torch.manual_seed(3)
    trained = network(X, T, C)
    (_, first), (entered, _), (_, left), (last, _) = seen
    assert entered.shape == left.shape == (4, 4, 24) and last.shape == (4, 9, 24)
    for b in range(4):
        kept = [[torch.equal(token, one) for one in first[b]].index(True) for token in entered[b]]
        assert len(set(kept)) == 4
        for place in range(9):
            bypassed = first[b, place] if place not in kept else left[b, kept.index(place)]
            assert torch.equal(last[b, place], bypassed)
    torch.manual_seed(3)
    assert torch.equal(network(X, T, C), trained) and not torch.equal(network(X, T, C), trained)
    trained.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in network.named_parameters()
               if name != "empty_context"), "gradient passes through the tokens that stay"
    with pytest.raises(ValidationError, match="token_drop needs a depth of at least 3, got 2"):
        build(token_drop=0.5)


@torch.no_grad()
@pytest.mark.parametrize("patches", [(2, 1), (6, 2), (2, 2)])
def test_smaller_patches_begin_with_the_mean_of_what_larger_ones_return(patches, monkeypatch):
    """Tokens that divide a patch are alike on latents that are constant within the parts of each, but for positions."""
    large, small = patches
    monkeypatch.setattr(dit, "positions", lambda rows, columns, width, *_: torch.zeros(rows * columns, width))
    coarse = build(patch=large, context_tokens=0)
    fine = build(patch=small, context_tokens=0, position_step=small / large)
    fine.load_state_dict(fine.weights_of(coarse))
    times, count = large // small, 12 // large
    pattern = torch.randn(4, 3, count, 1, small, count, 1, small)
    x = pattern.expand(-1, -1, -1, times, -1, -1, times, -1).reshape(4, 3, 12, 12)
    whole = coarse(x, T, C)
    parts = whole.view(4, 3, count, times, small, count, times, small)
    expected = parts.mean((3, 6), keepdim=True).expand_as(parts).reshape_as(whole)
    torch.testing.assert_close(fine(x, T, C), expected, **near(fine, whole))


def test_weights_of_other_patches_need_their_positions():
    coarse = build(patch=2)
    for settings, says in (({"patch": 1}, "only one with position_step 0.5"), ({"patch": 3}, "a patch of 3 with")):
        with pytest.raises(ValueError, match=says):
            build(**settings).weights_of(coarse)
    between = positions(4, 4, 24, step=0.5).view(4, 4, 24)
    assert torch.equal(positions(2, 2, 24), positions(2, 2, 24, step=1.0))
    for place, expected in ((2, 0.75), (3, 1.25)):
        assert torch.allclose(between[place, 0, 0], torch.tensor(expected).sin())


@torch.no_grad()
def test_the_early_prediction_is_that_of_a_network_of_the_first_blocks():
    network, short = build(depth=3, early_output=2), build(depth=2)
    state = {key: value for key, value in network.state_dict().items() if key in short.state_dict()}
    short.load_state_dict({**state, "last_table": network.early_table, "leave.weight": network.early_leave.weight,
                           "leave.bias": network.early_leave.bias})
    output, early = network(X, T, C, with_early=True)
    assert torch.equal(output, network(X, T, C))
    torch.testing.assert_close(early, short(X, T, C), **near(short, early))
    assert not torch.equal(output, early)
    with pytest.raises(ValueError, match="no early prediction: early_output is None"):
        short(X, T, C, with_early=True)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_dropped_tokens_have_an_early_prediction_too(at, monkeypatch):
    monkeypatch.setattr(dit, "modulated", lambda h, *_: h)  # only of the tokens that leave the network
    network = build(depth=4, token_drop=0.5, early_output=at).train()
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: seen.append(out.detach()))
    read = []
    network.early_leave.register_forward_hook(lambda _, inputs, out: read.append(inputs[0].detach()))
    with_early = network(X, T, C, with_early=True)
    (tokens,) = read
    assert with_early.shape == (2, *X.shape) and tokens.shape == seen[0].shape
    changed = (tokens != seen[0]).any(2).sum(1).tolist()
    assert changed == [0 if at == 1 else 4] * 4, "4 of the 9 tokens of each image go on"
    with_early[1].square().sum().backward()
    assert network.early_leave.weight.grad.abs().sum() > 0
    reached = [bool(block.attention.proj_out.weight.grad.any()) for block in network.blocks]
    assert reached == [number <= at for number in (1, 2, 3, 4)]


def test_places_without_an_early_prediction_are_refused():
    for settings, says in (({"early_output": 2}, "from 1 to 1, got 2"),
                           ({"depth": 16, "token_drop": 0.5, "early_output": 1}, "from 2 to 14, got 1"),
                           ({"early_output": 0}, "greater than or equal to 1")):
        with pytest.raises(ValidationError, match=says):
            build(**settings)


@torch.no_grad()
def test_smaller_patches_take_the_early_prediction_with_them(monkeypatch):
    monkeypatch.setattr(dit, "positions", lambda rows, columns, width, *_: torch.zeros(rows * columns, width))
    coarse = build(patch=2, context_tokens=0, early_output=1)
    fine = build(patch=1, context_tokens=0, early_output=1, position_step=0.5)
    fine.load_state_dict(fine.weights_of(coarse))
    x = torch.randn(4, 3, 3, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.avg_pool2d(coarse(x, T, C, with_early=True)[1], 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fine(x, T, C, with_early=True)[1], expected, **near(fine, expected))
