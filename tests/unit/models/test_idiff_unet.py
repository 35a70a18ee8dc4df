"""The UNet on small settings: what the context does, CPD, attention, and refused settings."""

from __future__ import annotations

import math

import pytest
import torch
from fill import fill_state, golden_normal
from pydantic import ValidationError
from tolerance import layers_of, products_of, rounding

from facesyn_cli.models.idiff_blocks import Attention, TimeEmbedding
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

SMALL = {
    "name": "idiff-unet", "in_channels": 4, "channels": 32, "multipliers": (1, 2), "attention": (False, True),
    "head_channels": 16, "num_blocks": 1, "context_size": 8, "context_width": 32,
}


def _small(**settings):
    return fill_state(ConditionalUNet(UnetConfig(**{**SMALL, **settings})))


def _tolerance(unet) -> float:
    return rounding(products_of(unet), 0.6)  # 0.6: spread of the noise it predicts


def _inputs(batch: int = 3):
    x = golden_normal(1, (batch, 4, 8, 8))
    t = torch.tensor([7, 500, 999][:batch])
    return x, t, torch.nn.functional.normalize(golden_normal(2, (batch, 8)))


@pytest.mark.parametrize("conditioning", ["ca", "adagn"])
def test_context_worked_out_once_gives_the_same_noise(conditioning):
    unet = _small(conditioning=conditioning)
    x, t, context = _inputs()
    drop = torch.tensor([False, True, False])
    state = unet.encode_context(context, drop)
    torch.testing.assert_close(unet(x, t, state), unet(x, t, context, drop), rtol=0, atol=_tolerance(unet))
    empty = unet.encode_context(None, batch=3)
    torch.testing.assert_close(unet(x, t, empty), unet(x, t), rtol=0, atol=_tolerance(unet))
    assert not torch.allclose(unet(x, t, context), unet(x, t))


@pytest.mark.parametrize("learned", [False, True])
def test_a_dropped_context_is_the_absent_one(learned):
    unet = _small(learn_empty_context=learned)
    x, t, context = _inputs()
    some = unet(x, t, context, drop_context=torch.tensor([True, False, True]))
    torch.testing.assert_close(some[[0, 2]], unet(x, t)[[0, 2]], rtol=0, atol=_tolerance(unet))
    torch.testing.assert_close(some[1], unet(x, t, context)[1], rtol=0, atol=_tolerance(unet))


def test_an_empty_context_can_be_learned():
    unet = _small(learn_empty_context=True)
    x, t, _ = _inputs()
    unet(x, t).square().sum().backward()
    assert unet.empty_context_embedding.grad.abs().sum() > 0
    assert "empty_context_embedding" in unet.state_dict()
    assert "empty_context_embedding" not in _small().state_dict()


def test_an_unconditional_network_has_no_context():
    unet = _small(conditioning="unconditional")
    x, t, context = _inputs()
    assert not any("context" in name for name in unet.state_dict())
    assert torch.equal(unet(x, t, context), unet(x, t))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5])
def test_component_dropout_keeps_and_scales_components(p):
    unet = _small(component_dropout=p, context_width=512)
    _, _, context = _inputs(2)
    full = unet._project(context, None, None, 2)
    torch.testing.assert_close(full, unet.context_emb(context))              # eval: identity
    mask = torch.rand(2, 512, generator=torch.Generator().manual_seed(0)) < 0.6
    torch.testing.assert_close(unet._project(context, None, mask, 2), full * mask / (1 - p))
    unet.train()
    torch.manual_seed(3)
    drawn = unet._project(context, None, None, 2)
    kept = drawn != 0
    torch.testing.assert_close(drawn[kept], (full / (1 - p))[kept])
    assert abs(kept.float().mean().item() - (1 - p)) < 0.06                  # 1024 draws: 4 standard deviations
    if p:
        assert not torch.equal(kept[0], kept[1])                             # each sample has its own


def test_component_dropout_comes_after_the_whole_context_is_dropped():
    unet = _small(component_dropout=0.5, learn_empty_context=True)
    _, _, context = _inputs(2)
    mask = torch.zeros(2, 32, dtype=torch.bool)
    mask[:, :4] = True
    c = unet._project(context, torch.tensor([True, False]), mask, 2)
    torch.testing.assert_close(c[0, :4], 2 * unet.empty_context_embedding[:4])
    assert c[:, 4:].abs().sum() == 0


def test_samples_do_not_depend_on_their_batch():
    unet = _small()
    x, t, context = _inputs()
    together = unet(x, t, context)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=_tolerance(unet))


def test_channels_last_gives_the_same_noise():
    unet = _small()
    x, t, context = _inputs()
    expected = unet(x, t, context)
    unet.to(memory_format=torch.channels_last)
    actual = unet(x.to(memory_format=torch.channels_last), t, context)
    torch.testing.assert_close(actual, expected, rtol=0, atol=_tolerance(unet))


def test_recomputed_activations_give_the_same_gradients():
    x, t, context = _inputs()
    gradients = []
    for recompute in (False, True):
        unet = _small(checkpoint_activations=recompute, component_dropout=0.25).train()
        torch.manual_seed(5)
        unet(x, t, context).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=_tolerance(unet))


def test_a_new_network_starts_by_predicting_zero():
    x, t, context = _inputs()
    assert ConditionalUNet(UnetConfig(**SMALL))(x, t, context).abs().max() == 0


@pytest.mark.parametrize("cross", [False, True])
def test_attention_and_its_gradients_equal_the_published_formula(cross):
    """softmax over keys of (q 16^-1/4) (k 16^-1/4), heads as contiguous channel groups, in float64."""
    attention = fill_state(Attention(32, 24 if cross else 32, 16)).double()
    x = golden_normal(3, (2, 32, 5)).double().requires_grad_()
    source = golden_normal(4, (2, 24, 7)).double().requires_grad_() if cross else x

    def conv(layer, value):
        return torch.einsum("oc,bcl->bol", layer.weight[:, :, 0], value) + layer.bias[:, None]

    q, k, v = conv(attention.to_q, x), conv(attention.to_k, source), conv(attention.to_v, source)
    q, k, v = (value.reshape(2, 2, 16, -1) for value in (q, k, v))           # (B, A, D, L)
    scores = torch.einsum("badl,bads->bals", q * 16**-0.25, k * 16**-0.25)
    expected = torch.einsum("bals,bads->badl", scores.softmax(-1), v).reshape(2, 32, 5)
    expected = conv(attention.proj_out, expected)
    rows = x.transpose(1, 2)  # positions in rows, as the network has them
    actual = attention(rows, attention.keys_values(source.transpose(1, 2))) if cross else attention(rows)
    actual = actual.transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    leaves = [x, *attention.parameters()] + ([source] if cross else [])
    weight = golden_normal(5, (2, 32, 5)).double()
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (actual, expected)),
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_time_is_cosines_then_sines():
    embedding = TimeEmbedding(4, 4)
    torch.nn.init.eye_(embedding.lin1.weight)
    torch.nn.init.eye_(embedding.lin2.weight)
    torch.nn.init.zeros_(embedding.lin1.bias)
    torch.nn.init.zeros_(embedding.lin2.bias)
    waves = [math.cos(3), math.cos(3 * 0.01), math.sin(3), math.sin(3 * 0.01)]  # f_1 = 10000^(-1/2)
    expected = torch.tensor([w / (1 + math.exp(-w)) for w in waves])
    torch.testing.assert_close(embedding(torch.tensor([3]))[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 40}, "multiple of 32"),
        ({"multipliers": (1, 2, 2)}, "one entry per level"),
        ({"multipliers": (1, 0)}, "1 or more"),
        ({"head_channels": 48}, "divisible by head_channels"),
        ({"component_dropout": 1.0}, "less than 1"),
        ({"conditioning": "unconditional", "learn_empty_context": True}, "conditional network"),
        ({"conditioning": "film"}, "'ca', 'adagn' or 'unconditional'"),
        ({"chanels": 64}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        UnetConfig(**{**SMALL, **settings})


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 4, 7, 8), (1, 4, 8, 9)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected latents \(B, 4, H, W\) with H and W divisible by 2"):
        _small()(torch.zeros(shape), torch.tensor([1]))


def test_contexts_of_another_batch_are_refused():
    unet = _small()
    x, t, context = _inputs()
    with pytest.raises(ValueError, match="2 contexts for 3 latents"):
        unet(x, t, context[:2])
    with pytest.raises(ValueError, match="encode_context"):
        unet(x, t, unet.encode_context(context), drop_context=torch.tensor([True, False, False]))


@pytest.mark.parametrize("conditioning", ["ca", "adagn", "unconditional"])
def test_bfloat16_stays_near_float32(conditioning):
    unet = _small(conditioning=conditioning).train()
    x, t, context = _inputs()
    mask = torch.ones(3, 32, dtype=torch.bool)
    drop = torch.tensor([False, True, False])
    expected = unet(x, t, context, drop, mask)
    with torch.autocast("cpu", torch.bfloat16):
        actual = unet(x, t, context, drop, mask)
        state = unet.encode_context(context, drop, mask)
        tolerance = rounding(layers_of(unet), expected.std(), torch.bfloat16)
        torch.testing.assert_close(unet(x, t, state), actual, rtol=0, atol=tolerance)
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=tolerance)
    actual.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
