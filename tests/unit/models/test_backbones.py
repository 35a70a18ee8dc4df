"""IR and IResNet backbones: what the plugin names promise."""

from __future__ import annotations

import pytest
import torch
from fill import fill_state, golden_uniform, skeleton
from pydantic import ValidationError
from tolerance import products_of, rounding
from torch.utils.flop_counter import FlopCounterMode

from facesyn_cli.models.ir import SqueezeExcite
from facesyn_cli.plugins import registry

NAMES = [
    *(f"ir-{d}" for d in (18, 34, 50, 101, 152, 200)), *(f"ir-se-{d}" for d in (18, 34, 50, 101, 152, 200)),
    *(f"iresnet-{d}" for d in (18, 34, 50, 100)), "ir-tiny",
]


def _build(name: str, **settings) -> torch.nn.Module:
    return registry.build("backbone", registry.configure("backbone", {"name": name, **settings}))


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_gives_512_numbers(name):
    module = skeleton("backbone", name=name).eval()
    assert tuple(module(torch.empty(2, 3, 112, 112, device="meta")).shape) == (2, 512)
    assert module.input_size == 112
    state = module.state_dict()
    assert any("se_block" in key for key in state) == ("-se-" in name)
    if name != "ir-tiny":  # a name's depth counts the linear layer and the convolutions, save those of shortcuts
        depth = int(name.rpartition("-")[2])
        counted = [value for key, value in state.items()
                   if value.ndim == 4 and not any(part in key for part in ("shortcut", "downsample", "se_block"))]
        assert len(counted) + 1 == {101: 100}.get(depth, depth)


@pytest.mark.parametrize(("depth", "parts"), [(152, (3, 8, 36, 3)), (200, (3, 24, 36, 3))])
def test_bottleneck_units_are_a_quarter_wide_inside(depth, parts):
    state = skeleton("backbone", name=f"ir-{depth}").state_dict()
    assert state["input_layer.0.weight"].shape == (64, 3, 3, 3)
    first = [sum(parts[:i]) for i in range(4)]
    inside = [tuple(state[f"body.{i}.res_layer.4.weight"].shape) for i in first]
    assert inside == [(width // 4, width // 4, 3, 3) for width in (256, 512, 1024, 2048)]
    assert all(f"body.{i}.shortcut_layer.0.weight" in state for i in first)
    assert sum("shortcut_layer.0.weight" in key for key in state) == 4
    assert state["output_layer.3.weight"].shape == (512, 2048 * 7 * 7)


def test_tiny_is_cheap():
    module = _build("ir-tiny").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(torch.zeros(1, 3, 112, 112))
    assert counter.get_total_flops() / 2 < 50e6  # multiply-adds
    assert sum(parameter.numel() for parameter in module.parameters()) < 2e6


@pytest.mark.parametrize("name", ["ir-tiny", "iresnet-18"])
def test_every_parameter_learns_and_embeddings_are_not_normalized(name):
    module = _build(name)
    embeddings = module.train()(golden_uniform(1, (2, 3, 112, 112)))
    embeddings.square().sum(1).log().sum().backward()
    frozen = {key for key, parameter in module.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"features.weight"} if name == "iresnet-18" else set())
    for key, parameter in module.named_parameters():
        assert key in frozen or parameter.grad is not None, key
    assert embeddings.norm(dim=1).min() > 2


def test_embeddings_do_not_depend_on_the_batch():
    module = fill_state(_build("ir-tiny"))
    pixels = golden_uniform(2, (3, 3, 112, 112))
    with torch.inference_mode():
        together = module(pixels)
        alone = torch.cat([module(image[None]) for image in pixels])
    torch.testing.assert_close(alone, together, rtol=0, atol=rounding(products_of(module), together.std()))


def test_dropout_acts_in_training_only():
    module = fill_state(_build("ir-tiny", dropout=0.5))
    pixels = golden_uniform(3, (2, 3, 112, 112))
    assert torch.equal(module(pixels), module(pixels))
    module.output_layer[1].train()
    assert not torch.equal(module(pixels), module(pixels))


def test_squeeze_and_excitation_by_hand():
    block = SqueezeExcite(16)
    torch.nn.init.constant_(block.fc1.weight, 1 / 16)  # mean over channels
    torch.nn.init.constant_(block.fc2.weight, 2.0)
    x = torch.full((1, 16, 3, 3), 0.5)
    torch.testing.assert_close(block(x), x * torch.sigmoid(torch.tensor(1.0)))
    torch.testing.assert_close(block(-x), -x * 0.5)    # relu stops the squeezed value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 16), "blocks": (1, 1)}, "must increase"),
        ({"widths": (16, 32), "blocks": (1,)}, "the same length"),
        ({"widths": (16,), "blocks": (0,)}, "1 or more"),
        ({"stem_stride": 3}, "less than or equal to 2"),
    ],
)
def test_wrong_settings_of_tiny_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        _build("ir-tiny", **settings)


@pytest.mark.parametrize("name", ["ir-tiny", "iresnet-18"])
def test_images_of_another_size_are_refused(name):
    with pytest.raises(ValueError, match=r"expected pixels \(B, 3, 112, 112\)"):
        skeleton("backbone", name=name)(torch.empty(1, 3, 128, 128))
