"""Feature maps and the perceptual distance: shapes, Eq. 1 in float64 numpy, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill_state, golden_normal, golden_uniform, skeleton

from facesyn_cli.errors import UserError
from facesyn_cli.models.feature_maps import feature_maps, has_feature_maps, perceptual_distance
from facesyn_cli.plugins import registry

SHAPES = {
    "ir-18": [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)],
    "ir-se-50": [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)],
    "iresnet-50": [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)],
    "ir-tiny": [(16, 56), (16, 28), (32, 14), (64, 7), (128, 4)],
    "mobilefacenet": [(64, 56), (64, 28), (128, 14), (128, 7)],
    "mbf": [(128, 56), (128, 28), (256, 14), (256, 7)],
}


def tiny(**settings):
    cfg = {"name": "ir-tiny", "widths": [4, 8], "blocks": [2, 1], "embedding_size": 8, **settings}
    return fill_state(registry.build("backbone", registry.configure("backbone", cfg)))


@pytest.mark.parametrize("name", SHAPES)
def test_one_map_after_the_stem_and_each_stage(name):
    maps = feature_maps(skeleton("backbone", name=name).eval(), torch.empty(2, 3, 112, 112, device="meta"))
    assert [tuple(x.shape) for x in maps] == [(2, channels, side, side) for channels, side in SHAPES[name]]


@pytest.mark.parametrize(("model", "settings", "count"), [
    ("edgenext_xx_small", {}, 4), ("vit_tiny_patch16_224", {"patch_size": 16}, 5), ("test_resnet", {}, 5),
])
def test_maps_of_timm_networks(model, settings, count):
    pytest.importorskip("timm")
    backbone = registry.build("backbone", registry.configure(
        "backbone", {"name": "timm", "model": model, "embedding_size": 8, **settings})).eval()
    with torch.inference_mode():
        maps = feature_maps(backbone, golden_uniform(0, (1, 3, 112, 112)))
    assert len(maps) == count and all(x.ndim == 4 for x in maps)
    sides = [x.shape[-1] for x in maps]
    assert sides == sorted(sides, reverse=True)


def test_the_last_map_is_what_the_embedding_is_made_of():
    backbone = tiny(channel_order="bgr")
    pixels = golden_uniform(1, (2, 3, 112, 112))
    maps = feature_maps(backbone, pixels)
    assert torch.equal(backbone.output_layer(maps[-1]), backbone(pixels))
    assert not backbone.body[-1]._forward_hooks  # nothing stays behind


def test_distance_is_equation_1():
    maps_a = [golden_normal(1, (2, 3, 4, 4)), golden_normal(2, (2, 5, 2, 2))]
    maps_b = [golden_normal(3, (2, 3, 4, 4)), golden_normal(4, (2, 5, 2, 2))]
    weights = [golden_uniform(5, (3,)).abs(), golden_uniform(6, (5,)).abs()]
    for use in (None, weights):
        expected = np.zeros(2)
        for layer in range(2):
            a, b = (x[layer].double().numpy() for x in (maps_a, maps_b))
            a, b = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (a, b))
            w = np.ones(a.shape[1]) if use is None else use[layer].double().numpy()
            expected += np.einsum("c,bchw->b", w, (a - b) ** 2) / a.shape[2] / a.shape[3]
        assert perceptual_distance(maps_a, maps_b, use).numpy() == pytest.approx(expected, rel=1e-5)


def test_distance_is_zero_for_equal_images_symmetric_and_blind_to_scale():
    maps_a, maps_b = [golden_normal(1, (2, 3, 4, 4))], [golden_normal(2, (2, 3, 4, 4))]
    assert perceptual_distance(maps_a, maps_a).tolist() == [0, 0]
    forth, back = perceptual_distance(maps_a, maps_b), perceptual_distance(maps_b, maps_a)
    assert torch.equal(forth, back) and forth.min() > 0
    assert torch.allclose(perceptual_distance([3 * maps_a[0]], [0.1 * maps_b[0]]), forth)
    assert perceptual_distance([maps_a[0]], [-maps_a[0]]).numpy() == pytest.approx([4, 4])
    with pytest.raises(ValueError, match="zip"):
        perceptual_distance(maps_a, [])


def test_gradient_in_the_pixels_is_that_of_finite_differences():
    backbone = tiny().double()
    pixels, other = (golden_uniform(seed, (1, 3, 112, 112)).double() for seed in (1, 2))
    pixels.requires_grad_()
    target = [x.detach() for x in feature_maps(backbone, other)]
    perceptual_distance(feature_maps(backbone, pixels), target).sum().backward()
    direction = golden_normal(3, (1, 3, 112, 112)).double()
    step = 1e-6
    with torch.no_grad():
        values = [perceptual_distance(feature_maps(backbone, pixels + sign * step * direction), target).sum()
                  for sign in (1, -1)]
    slope = (values[0] - values[1]) / (2 * step)
    assert slope.item() == pytest.approx((pixels.grad * direction).sum().item(), rel=1e-5)


def test_maps_of_zeros_give_finite_gradients():
    maps = [torch.zeros(1, 3, 2, 2, requires_grad=True)]
    perceptual_distance(maps, [torch.zeros(1, 3, 2, 2)]).sum().backward()
    assert maps[0].grad.isfinite().all()


def test_a_network_without_maps_is_refused_in_one_line():
    assert not has_feature_maps(torch.nn.Linear(2, 2)) and has_feature_maps(tiny())
    with pytest.raises(UserError, match="Linear does not provide them"):
        feature_maps(torch.nn.Linear(2, 2), torch.zeros(1, 3, 112, 112))
